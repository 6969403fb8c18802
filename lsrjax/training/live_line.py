"""The lines that show a run's progress."""

from collections.abc import Mapping

# Order in a line: the loss, its parts (anything not named here), then these.
_AFTER_PARTS = (
    *("grad_norm", "lr", "lambda", "active", "expansion", "unused", "empty"),
    *("examples", "tokens", "padding", "memory"),
)


def line(name: str, step: int, total: int, numbers: Mapping[str, float]) -> str:
    """`distill 20/400 · loss 1.2 · …`."""
    return " · ".join([f"{name} {step:,}/{total:,}", *shown(numbers)])


def shown(numbers: Mapping[str, float]) -> list[str]:
    """`loss 1.2` and others: the loss, its parts, then the other numbers."""
    several = _by_language(numbers)
    found = []
    for one in _in_order(numbers):
        value = _number(numbers[one]) if one in numbers else several[one]
        found.append(f"{_SHORT.get(one, one)} {value}")
    return found


def pairs(
    name: str,
    step: int,
    total: int,
    numbers: Mapping[str, float],
    seconds_left: float | None,
) -> str:
    """`stage=distill step=20/400 loss=1.2 …`, in the order of `line`, without spaces.

    Of numbers by language, the ends: `active/lowest=8.25(da) active/highest=31(ja)`.
    """
    parts = [f"stage={name}", f"step={step}/{total}"]
    ends = _ends(numbers)
    for one in _in_order(numbers):
        if one in numbers:
            parts.append(f"{one}={numbers[one]:.6g}")
            continue
        whole = one.removesuffix(_BY_LANGUAGE)
        for which, end in zip(("lowest", "highest"), ends[one], strict=True):
            language = end.partition("/")[2]
            parts.append(f"{whole}/{which}={numbers[end]:.6g}({language})")
    if seconds_left is not None:
        parts.append(f"left={duration(seconds_left)}")
    return " ".join(parts)


def duration(seconds: float) -> str:
    """`1:05` for minutes and seconds, `2:03:09` with hours."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def bar(share: float, width: int, whole: bool) -> str:
    """A bar of `width` characters; in ASCII unless `whole`."""
    done = round(min(max(share, 0.0), 1.0) * width)
    full, empty = ("━", "┄") if whole else ("#", "-")
    return full * done + empty * (width - done)


def short_device(kind: str) -> str:
    """A device's name in a few letters: `H100 80GB`, `TPU v5 lite`, `cpu`."""
    short = ""
    for word in kind.removeprefix("NVIDIA ").split():
        if short and len(short) + 1 + len(word) > 12:
            break
        short = f"{short} {word}".strip()
    return short


def _in_order(numbers: Mapping[str, float]) -> list[str]:
    return sorted(dict.fromkeys(map(_whole, numbers)), key=_place)


def _place(name: str) -> int:
    if name == "loss":
        return -2
    places = [i for i, start in enumerate(_AFTER_PARTS) if name.startswith(start)]
    return places[0] if places else -1


_BY_LANGUAGE = " by language"


def _whole(name: str) -> str:
    """`active_query_terms by language` for `active_query_terms/da`."""
    whole, _, language = name.partition("/")
    return f"{whole}{_BY_LANGUAGE}" if language else name


def _ends(numbers: Mapping[str, float]) -> dict[str, tuple[str, str]]:
    """The names of the lowest and highest of each number that is logged by language."""
    found: dict[str, list[str]] = {}
    for name in numbers:
        if "/" in name:
            found.setdefault(_whole(name), []).append(name)
    return {
        whole: (
            min(names, key=numbers.__getitem__),
            max(names, key=numbers.__getitem__),
        )
        for whole, names in found.items()
    }


def _by_language(numbers: Mapping[str, float]) -> dict[str, str]:
    """The range of each number that is logged by language."""
    return {
        whole: " to ".join(
            f"{_number(numbers[name])} ({name.partition('/')[2]})"
            for name in dict.fromkeys(ends)
        )
        for whole, ends in _ends(numbers).items()
    }


_SHORT = {
    "examples_per_s": "ex/s",
    "tokens_per_s": "tok/s",
    "grad_norm": "|g|",
}


def _number(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1e}"
