"""Sizes on the command line: a flag for each field of a dataclass, and presets."""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]


Sizes = TypeVar("Sizes", bound=_Dataclass)


def size(default, meaning: str, **argument) -> Any:
    """A field of a dataclass of sizes; by default its flag takes a positive integer."""
    argument = argument or {"type": positive}
    return dataclasses.field(
        default=default, metadata={"meaning": meaning, "argument": argument}
    )


def add_flags(
    parser: argparse.ArgumentParser,
    sizes: type,
    presets: Mapping[str, Mapping[str, Any]],
) -> None:
    """Adds `--preset` and a flag for each size, which overrides the preset's.

    A preset has one or more sizes by the name of their row.
    """
    if presets:
        parser.add_argument(
            "--preset",
            choices=presets,
            metavar="NAME",
            help=f"sizes; the flags below override them: {', '.join(presets)}",
        )
    for field in dataclasses.fields(sizes):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            # Without a default, the namespace shows which sizes were given.
            default=argparse.SUPPRESS,
            help=f"{field.metadata['meaning']} (default: {field.default})",
            **field.metadata["argument"],
        )


def resolve(
    args: argparse.Namespace,
    default: Sizes,
    presets: Mapping[str, Mapping[str, Sizes]],
    name: str,
) -> dict[str, Sizes]:
    """The sizes to measure by the name of their row: preset or default, then flags."""
    chosen = presets[args.preset] if args.preset else {name: default}
    given = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(default)
        if hasattr(args, field.name)
    }
    return {row: dataclasses.replace(sizes, **given) for row, sizes in chosen.items()}


def positive(text: str) -> int:
    """An integer from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return value


def not_negative(text: str) -> int:
    """An integer from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not an integer from 0")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value
