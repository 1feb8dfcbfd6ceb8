"""Draws what `scripts/bench.py` measured: the time and the memory of each variant."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pockmobile.errors import UsageError
from scripts.benchmark.results import Case


def check_plot(path: Path) -> None:
    """Checks, before anything is measured, that a picture can be drawn.

    Raises:
        UsageError: matplotlib is missing, or the file's ending is no picture's it knows.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'pockmobile[plots]'")
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise UsageError(f"--plot {path}: expected a file of {', '.join(sorted(known))}")


def draw(cases: Sequence[Case], path: Path) -> None:
    """Writes a picture with a row for each case: median times (minima marked), and memory.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    heights = [len(case.measured) + 1.5 for case in cases]
    figure = Figure(figsize=(10, 0.35 * sum(heights) + 0.5), layout="constrained")
    grid = figure.subplots(len(cases), 2, squeeze=False, height_ratios=heights)
    for case, (times, memory) in zip(cases, grid, strict=True):
        names = [item.variant for item in case.measured]
        times.barh(names, [1e3 * item.median for item in case.measured])
        times.plot([1e3 * item.minimum for item in case.measured], names, "k|", markersize=12)
        times.set(title=case.title, xlabel="ms of a step: median, | minimum", xscale="log")
        memory.barh(names, [item.memory_bytes / 1e6 for item in case.measured], color="C1")
        memory.set(xlabel="process memory over imports, MB")
        for axes in (times, memory):
            axes.invert_yaxis()
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
