"""The progress line of a run."""

from collections.abc import Mapping

# Order in a line: the loss, its parts (anything not named here), then these.
_AFTER_PARTS = (
    *("grad_norm", "lr", "lambda", "active", "expansion", "unused", "empty"),
    *("examples", "tokens", "padding", "memory"),
)


def line(
    name: str,
    step: int,
    total: int,
    numbers: Mapping[str, float],
    seconds_left: float | None,
) -> str:
    """`distill 20/400 · loss 1.2 · …`: the loss, its parts, then the other numbers."""
    parts = [f"{name} {step:,}/{total:,}"]
    several = _by_language(numbers)
    parts += [
        f"{_SHORT.get(one, one)} {several.get(one) or _number(numbers[one])}"
        for one in sorted(dict.fromkeys(map(_whole, numbers)), key=_place)
    ]
    if seconds_left is not None:
        minutes, seconds = divmod(int(seconds_left), 60)
        parts.append(f"left {minutes}:{seconds:02d}")
    return " · ".join(parts)


def _place(name: str) -> int:
    if name == "loss":
        return -2
    places = [i for i, start in enumerate(_AFTER_PARTS) if name.startswith(start)]
    return places[0] if places else -1


def _whole(name: str) -> str:
    """`active_query_terms by language` for `active_query_terms/da`."""
    whole, _, language = name.partition("/")
    return f"{whole} by language" if language else name


def _by_language(numbers: Mapping[str, float]) -> dict[str, str]:
    """The range of each number that is logged by language."""
    found: dict[str, list[str]] = {}
    for name in numbers:
        if "/" in name:
            found.setdefault(_whole(name), []).append(name)
    shown = {}
    for whole, names in found.items():
        ends = min(names, key=numbers.__getitem__), max(names, key=numbers.__getitem__)
        shown[whole] = " to ".join(
            f"{_number(numbers[name])} ({name.partition('/')[2]})"
            for name in dict.fromkeys(ends)
        )
    return shown


_SHORT = {
    "examples_per_s": "ex/s",
    "tokens_per_s": "tok/s",
    "grad_norm": "|g|",
}


def _number(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1e}"
