"""Prints what `scripts/bench.py` measured, as tables."""

from collections.abc import Sequence
from typing import Final

from pockmobile.artifact.report import human_bytes
from scripts.benchmark.results import Case, Measured, faults

BASE: Final = "ours"
"""The variant whose times are 1, if it was measured."""
_COLUMNS: Final = (
    "variant",
    "median",
    "minimum",
    "median, ratio",
    "minimum, ratio",
    "user CPU",
    "planned",
    "workspace",
    "process memory",
    "file",
    "export",
    "loss",
)
NOTES: Final = (
    "Times are of one step, ratios of its time to that of the first row. User CPU is that of a "
    "step, all threads together. Process memory is the peak of the worker's resident memory "
    "over that after its imports; torch.compile's holds its compiler's. Loss is before and "
    "after the steps of the check. `-full` and stock ExecuTorch train everything, `-last` the "
    "last block and what is behind it, `-head` the head; `-split` starts from latents, as from "
    "the second epoch on. Of a peer, export is the conversion to its own format, and the file "
    "all that it loads. An LM whose head is its embedding table trains both uses of it, so "
    "its gradients go down to the first layer even with `-head`."
)


def lines_of(case: Case) -> list[str]:
    """Returns a case as a title, a table in Markdown, and a line for each fault."""
    rows = [list(_COLUMNS)]
    if case.measured:
        base = _base(case.measured)
        others = [item for item in case.measured if item is not base]
        rows += [_row(item, base) for item in (base, *others)]
    load = f"load average {case.load[0]:.1f} to {case.load[1]:.1f}"
    num_rounds = len(case.measured[0].seconds) if case.measured else 0
    lines = [f"## {case.title}", "", f"{num_rounds} rounds, {load}", ""]
    lines += _markdown(rows)
    lines += [f"{fault.variant}: {fault.text}" for fault in faults(case)]
    return [*lines, ""]


def _base(measured: Sequence[Measured]) -> Measured:
    return next((item for item in measured if item.variant == BASE), measured[0])


def _row(item: Measured, base: Measured) -> list[str]:
    return [
        item.variant,
        milliseconds(item.median),
        milliseconds(item.minimum),
        f"{item.median / base.median:.2f}",
        f"{item.minimum / base.minimum:.2f}",
        milliseconds(item.user_seconds),
        _bytes(item.planned_bytes),
        _bytes(item.workspace_bytes),
        human_bytes(item.memory_bytes),
        _bytes(item.file_bytes),
        "-" if item.export_seconds is None else f"{item.export_seconds:.0f} s",
        f"{item.losses[0]:.3f} to {item.losses[-1]:.3f}",
    ]


def milliseconds(seconds: float) -> str:
    """Returns a time with three digits or more."""
    value = 1e3 * seconds
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f} ms"


def _bytes(number: int | None) -> str:
    return "-" if number is None else human_bytes(number)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows as a table that is legible as text, too."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]
