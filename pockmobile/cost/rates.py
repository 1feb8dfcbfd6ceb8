"""The time that each kind of work takes, as `scripts/calibrate.py` measured it."""

from collections.abc import Mapping
from typing import Final

from pockmobile.cost.work import Work

RATES: Final[Mapping[str, Mapping[Work, float]]] = {
    "portable": {
        Work.DENSE: 5.06e-10,
        Work.GROUPED: 4.02e-8,
    },
    "xnnpack": {
        Work.DENSE: 8.89e-12,
        Work.GROUPED: 4.92e-12,
        Work.PACKED: 8.2e-11,
        Work.BYTES: 7.18e-12,
        Work.OPERATORS: 1.91e-7,
    },
}
"""Target -> seconds for each unit of work, on one thread of the machine of the README.

A plan's step ratio divides two such times, so it holds on other machines too as far as
their rates have the same proportions.
"""


def seconds(work: Mapping[Work, float], target: str) -> float:
    """Returns the time of a step's work."""
    rates = RATES[target]
    return sum(amount * rates.get(kind, 0.0) for kind, amount in work.items())
