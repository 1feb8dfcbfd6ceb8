"""The report on a sensitivity analysis and plan search: one HTML page for people.

`analysis` is what the page tells, `page` the page in its order, `bars`, `channels`, `area`
and `scatter` its pictures, `svg` what they share, `units` how numbers read, `markup` how
text is escaped, `style` how it looks.
"""

from pockmobile.chart.analysis import (
    Analysis,
    Bar,
    ChosenLayer,
    MemoryStep,
    PlanRow,
    Point,
)
from pockmobile.chart.page import render_analysis

__all__ = [
    "Analysis",
    "Bar",
    "ChosenLayer",
    "MemoryStep",
    "PlanRow",
    "Point",
    "render_analysis",
]
