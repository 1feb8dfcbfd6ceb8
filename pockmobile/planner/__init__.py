"""Finds what to train on a task under a budget."""

from pockmobile.planner.analysis import analyze, find_plan
from pockmobile.planner.examples import Examples
from pockmobile.planner.findings import Evidence, Findings
from pockmobile.planner.settings import DEFAULT_RATES, Settings

__all__ = [
    "DEFAULT_RATES",
    "Evidence",
    "Examples",
    "Findings",
    "Settings",
    "analyze",
    "find_plan",
]
