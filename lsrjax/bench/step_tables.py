"""The tables of `step`."""

import dataclasses
from collections.abc import Mapping

from rich.table import Table

from lsrjax.bench import measure
from lsrjax.training import flops

FOOTNOTE = (
    "speed-up: naive time / time; tokens: of the student's texts, without padding;"
    " temp MB: what the compiler reserves on a device beyond arguments and results;"
    " FLOP: of the products, with padding, backward and what is computed again,"
    " and the teacher's forward pass."
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of a stage's step.

    By implementation: seconds, and temporary bytes of a device. Tokens are those of the
    student's texts, without padding.
    """

    seconds: Mapping[str, float]
    temp: Mapping[str, int | None]
    examples: int
    tokens: int
    operations: flops.Flops


def times(found: Mapping[str, Measured]) -> Table:
    """Time and memory of each implementation, by the name of the row."""
    table = Table(title="one optimizer step")
    for column in ("step", "pooling"):
        table.add_column(column)
    for column in ("ms", "speed-up", "examples/s", "tokens/s", "temp MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, measured in found.items():
        base = measured.seconds.get("naive")
        for impl, seconds in measured.seconds.items():
            table.add_row(
                name,
                impl,
                measure.figure(seconds * 1e3),
                f"{base / seconds:.2f}x" if base else "-",
                measure.figure(measured.examples / seconds),
                f"{measured.tokens / seconds:,.0f}",
                measure.megabytes(measured.temp[impl]),
            )
    return table


def operations(
    found: Mapping[str, Measured], peaks: Mapping[str, float | None], devices: int
) -> Table:
    """Operations by formula and, if a device's peak FLOP/s is known, shares of it."""
    known = any(peaks.values())
    largest = max(measured.operations.both for measured in found.values())
    unit, name = (1e12, "TFLOP") if largest >= 1e13 else (1e9, "GFLOP")
    table = Table(title="floating point operations")
    for column in ("step", "pooling"):
        table.add_column(column)
    columns = [f"encoder\n{name}", f"head\n{name}", f"both\n{name}/s"]
    if known:
        columns += ["of peak\nencoder", "of peak\nhead", "of peak\nboth"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row, measured in found.items():
        parts = measured.operations
        for impl, seconds in measured.seconds.items():
            cells = [
                measure.figure(parts.encoder / unit),
                measure.figure(parts.head / unit),
                measure.figure(parts.both / seconds / unit),
            ]
            if known:
                peak = peaks[row]
                cells += [
                    f"{x / seconds / peak / devices:.1%}" if peak else "-"
                    for x in (parts.encoder, parts.head, parts.both)
                ]
            table.add_row(row, impl, *cells)
    return table
