"""The report on a program: what it trains, what that costs, and what the delegate left out."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from pockmobile.artifact.manifest import Manifest, Method, StateEntry

_UNITS: Final = ("kB", "MB", "GB", "TB", "PB")
_GAP: Final = "  "
_LOSSES_DIFFER: Final[Mapping[str, int]] = {"int8": 1, "int4": 2}
"""By how many hundredths, over frozen weights so held."""
_NUM_NAMED: Final = 8
"""Operators of a delegate that are named; the manifest has them all."""
_BARS: Final = " ▁▂▃▄▅▆▇█"


def render(manifest: Manifest, file_bytes: int) -> str:
    """Returns the report as lines of text; `file_bytes` is the size of the program file."""
    sections = (
        _summary(manifest, file_bytes),
        _trained(manifest),
        _methods(manifest),
        _memory(manifest),
        _delegates(manifest),
        _outside(manifest),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def render_needs(manifest: Manifest, file_bytes: int) -> str:
    """Returns what a program needs, in bytes; `file_bytes` is the size of its file."""
    trained = sum(math.prod(entry.shape) for entry in manifest.parameters)
    parameter_bytes = 4 * trained
    rows = [
        ("model", f"{manifest.model.name} for {manifest.target}{_options(manifest)}"),
        ("plan", manifest.plan.preset or "custom"),
        ("file", human_bytes(file_bytes)),
        ("frozen", human_bytes(manifest.frozen_bytes) + _precision(manifest)),
        ("trained", f"{human_bytes(parameter_bytes)}, {_plural(trained, 'value')}"),
        ("optimizer", human_bytes(manifest.state_bytes - parameter_bytes)),
    ]
    return "\n".join([*table(rows, "<<"), "", *_methods(manifest)])


def human_bytes(num_bytes: int) -> str:
    """Returns a number of bytes with a decimal unit, for example `1.2 MB`."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    value, units = num_bytes / 1000, iter(_UNITS)
    unit = next(units)
    while value >= 999.95:  # what would be rounded to 1000.0
        value, unit = value / 1000, next(units)
    return f"{value:.1f} {unit}"


def _summary(manifest: Manifest, file_bytes: int) -> list[str]:
    nodes, versions = manifest.num_nodes, manifest.versions
    constants = {name: value for name, value in manifest.optimizer.items() if name != "name"}
    optimizer = " ".join(
        [str(manifest.optimizer.get("name")), *(f"{k}={v}" for k, v in constants.items())]
    )
    clip = "" if manifest.clip_norm is None else f", clipped at norm {manifest.clip_norm:g}"
    num_nodes = (
        f"{nodes.captured:,} captured, {nodes.pruned:,} after pruning, "
        f"{nodes.lowered:,} lowered"
    )
    made_by = (
        f"pockmobile {versions.pockmobile}, torch {versions.torch}, "
        f"executorch {versions.executorch}"
    )
    rows = [
        ("model", f"{manifest.model.name} for {manifest.target}{_options(manifest)}"),
        ("loss", manifest.loss),
        ("optimizer", optimizer + clip),
        ("plan", manifest.plan.preset or "custom"),
        ("file", human_bytes(file_bytes)),
        ("state", human_bytes(manifest.state_bytes)),
        ("frozen", human_bytes(manifest.frozen_bytes) + _precision(manifest)),
        ("nodes", num_nodes),
        ("made by", made_by),
    ]
    return table(rows, "<<")


def _options(manifest: Manifest) -> str:
    chosen = [f"{name} {value}" for name, value in manifest.target_options.items()]
    return f" ({', '.join(chosen)})" if chosen else ""


def _precision(manifest: Manifest) -> str:
    if manifest.frozen_weights == "fp32":
        return ""
    held, share = manifest.frozen_weights, _LOSSES_DIFFER[manifest.frozen_weights]
    return f", large weights in {held}: losses differ by about {share} %"


def _trained(manifest: Manifest) -> list[str]:
    entries = manifest.parameters
    total = sum(math.prod(entry.shape) for entry in entries)
    rows = [
        (
            entry.parameter + _slice_suffix(entry),
            " x ".join(map(str, entry.shape)) or "scalar",
            f"{math.prod(entry.shape):,}",
        )
        for entry in entries
    ]
    head = f"trained: {_plural(len(entries), 'tensor')}, {_plural(total, 'value')}"
    return [head, *_indent(table(rows, "<<>"))]


def _slice_suffix(entry: StateEntry) -> str:
    if entry.slice is None:
        return ""
    before = ":, " * entry.slice.dim
    return f"[{before}{entry.slice.start}:{entry.slice.stop}]"


def _methods(manifest: Manifest) -> list[str]:
    rows = [("method", "planned", "workspace", "operators", "delegated", "partitions")]
    rows += [
        (
            name,
            human_bytes(method.planned_bytes),
            human_bytes(method.workspace_bytes),
            f"{method.num_operators:,}",
            _share(method),
            f"{method.num_partitions:,}",
        )
        for name, method in manifest.methods.items()
    ]
    return table(rows, "<>>>>>")


def _memory(manifest: Manifest) -> list[str]:
    """Draws the delegates' workspace over a training step, the first operator at the left."""
    # No other method has them.
    moments = [moment for method in manifest.methods.values() for moment in method.moments]
    if not moments:
        return []
    peak = max(moments, key=lambda moment: moment.num_bytes)
    # Rounded up: what is not empty shows.
    levels = [-(-(len(_BARS) - 1) * item.num_bytes // peak.num_bytes) for item in moments]
    where = f" in {peak.module}" if peak.module else ""
    return [
        f"workspace over train_step, at most {human_bytes(peak.num_bytes)}{where}",
        _GAP + "".join(_BARS[level] for level in levels),
    ]


def _delegates(manifest: Manifest) -> list[str]:
    rows = [
        (name, item.backend, human_bytes(item.num_bytes), _most(item.operators))
        for name, method in manifest.methods.items()
        for item in method.delegates
    ]
    return ["delegates", *_indent(table(rows, "<<><"))] if rows else []


def _most(operators: Mapping[str, int]) -> str:
    """Names the operators that are there most often, and counts the others."""
    ordered = sorted(operators.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{count} {name.split('.')[1]}" for name, count in ordered[:_NUM_NAMED]]
    others = sum(count for _, count in ordered[_NUM_NAMED:])
    return ", ".join([*named, f"{others} others"] if others else named)


def _share(method: Method) -> str:
    if method.num_operators == 0:
        return "-"
    # Rounded down: 100 % means that nothing is left outside.
    share = math.floor(1000 * method.num_delegated / method.num_operators) / 10
    return f"{share:.1f} %"


def _outside(manifest: Manifest) -> list[str]:
    rows = [
        (
            name,
            f"{operator.count} x",
            operator.operator,
            operator.module or "-",
            operator.reason,
        )
        for name, method in manifest.methods.items()
        for operator in method.outside
    ]
    if not rows:
        return ["outside the delegate: nothing"]
    total = sum(op.count for method in manifest.methods.values() for op in method.outside)
    return [
        f"outside the delegate: {_plural(total, 'operator')}",
        *_indent(table(rows, "<><<<")),
    ]


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def table(rows: Sequence[Sequence[str]], alignment: str) -> list[str]:
    """Returns one line for each row; `alignment` has `<` or `>` for each column."""
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(alignment))]
    return [
        _GAP.join(
            f"{cell:{side}{width}}"
            for cell, side, width in zip(row, alignment, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _indent(lines: Sequence[str]) -> list[str]:
    return [_GAP + line for line in lines]
