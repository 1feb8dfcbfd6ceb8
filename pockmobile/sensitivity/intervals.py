"""Confidence intervals from few repeats of many comparisons."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean
from typing import Final

_FEW: Final = (12.706, 4.303, 3.182, 2.776)
"""Student's t at 97.5 % for 1 to 4 degrees of freedom, where the expansion is too coarse."""

_FEWEST: Final = 10
"""Fewer comparisons than this are pooled all."""


def pooled_half_width(differences: Sequence[Sequence[float]]) -> float:
    """Returns half the width of the 95 % interval of each mean.

    A few repeats tell little of their own spread. All comparisons are of the same kind, so
    one standard deviation is estimated from many, each around its own mean: from the better
    half of them, since what does harm (a first layer moved too far) does so in wild amounts.
    Mean and spread of a sample are independent, so that this choice does not flatter. They
    share the runs of what they are compared with, so that the estimate has somewhat less
    freedom than is counted here.

    Args:
        differences: the repeats of each comparison; as many of each, at least 2.
    """
    if not differences:
        return 0.0
    num_pooled = max(_FEWEST, math.ceil(len(differences) / 2))
    pooled = sorted(differences, key=fmean, reverse=True)[:num_pooled]
    num_repeats = len(pooled[0])
    squares = sum((value - fmean(row)) ** 2 for row in pooled for value in row)
    freedom = len(pooled) * (num_repeats - 1)
    return student_t(freedom) * math.sqrt(squares / freedom / num_repeats)


def student_t(freedom: int) -> float:
    """Returns Student's t at 97.5 %.

    From 5 degrees of freedom on by the expansion of Abramowitz and Stegun, 26.7.5.
    """
    if freedom <= len(_FEW):
        return _FEW[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / float(freedom) ** power for power, term in enumerate(terms))
