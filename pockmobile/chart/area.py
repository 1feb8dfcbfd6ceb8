"""Memory over a training step: an area by phase, with the peak marked."""

from collections.abc import Sequence
from itertools import groupby
from typing import Final

from pockmobile.artifact.report import human_bytes
from pockmobile.chart.analysis import MemoryStep, Phase
from pockmobile.chart.markup import Markup, element
from pockmobile.chart.svg import (
    LEFT,
    RIGHT,
    SMALL,
    Scale,
    box,
    figure,
    hint,
    line,
    round_scale,
    shortened,
    text,
    text_width,
    x_axis,
    y_axis,
)
from pockmobile.chart.units import byte_unit

PHASES: Final[tuple[Phase, ...]] = ("forward", "backward", "update")
_TOP, _BOTTOM, _HEIGHT = 34.0, 240.0, 280.0


def area_chart(steps: Sequence[MemoryStep]) -> Markup:
    """Returns the chart; there must be a step at least."""
    unit, num_bytes = byte_unit(step.live_bytes for step in steps)
    y = round_scale([0, *(step.live_bytes / num_bytes for step in steps)], _BOTTOM, _TOP)
    x = Scale(0, len(steps), LEFT, RIGHT)
    peak = peak_of(steps)
    found = [phase for phase in PHASES if any(step.phase == phase for step in steps)]
    parts = [
        *y_axis(y, LEFT, RIGHT, f"live memory ({unit})"),
        *x_axis(x, _BOTTOM, _BOTTOM, "moments in execution order"),
        *(_area(steps, phase, x, y, num_bytes) for phase in found),
        line(LEFT, _BOTTOM, RIGHT, _BOTTOM, "zero"),
        *_peak(steps[peak], x(peak + 0.5), y(steps[peak].live_bytes / num_bytes)),
    ]
    description = (
        f"{len(steps):,} moments. The peak is {human_bytes(steps[peak].live_bytes)}, at "
        f"moment {peak + 1:,} ({steps[peak].label}, {steps[peak].phase})."
    )
    return figure("memory", "Live memory by moment", description, _HEIGHT, parts)


def legend() -> Markup:
    """Returns the key to the phases."""
    items = [
        element(
            "li",
            element(
                "svg",
                box(1, 2, 14, 10, f"area {phase}"),
                viewBox="0 0 16 14",
                class_="key",
                aria_hidden="true",
            ),
            phase,
        )
        for phase in PHASES
    ]
    return element("ul", *items, class_="legend")


def peak_of(steps: Sequence[MemoryStep]) -> int:
    """Returns the number, from 0, of the first step with the most live bytes."""
    return max(range(len(steps)), key=lambda number: steps[number].live_bytes)


def _area(
    steps: Sequence[MemoryStep], phase: Phase, x: Scale, y: Scale, num_bytes: int
) -> Markup:
    """One path with a part for each run of operators of the phase."""
    runs = groupby(enumerate(steps), lambda pair: pair[1].phase)
    path = " ".join(
        _run([(i, y(step.live_bytes / num_bytes)) for i, step in run], x, y(0))
        for found, run in runs
        if found == phase
    )
    return element("path", hint(phase), d=path, class_=f"area {phase}")


def _run(tops: Sequence[tuple[int, float]], x: Scale, base: float) -> str:
    first, last = tops[0][0], tops[-1][0]
    corners = " ".join(f"V{top:.1f} H{x(i + 1):.1f}" for i, top in tops)
    return f"M{x(first):.1f} {base:.1f} {corners} L{x(last + 1):.1f} {base:.1f} Z"


def _peak(step: MemoryStep, x: float, y: float) -> list[Markup]:
    words = f"peak {human_bytes(step.live_bytes)}, {shortened(step.label, 180, SMALL)}"
    half = text_width(words, SMALL) / 2
    at = min(max(x, LEFT + half), RIGHT - half)
    mark = element("circle", hint(words), cx=x, cy=y, r=4, class_="peak")
    return [mark, text(at, y - 9, words, "middle", "small label")]
