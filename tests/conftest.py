"""Loads first what would crash if it were loaded after Qualcomm's libraries had run.

A test process runs tests of Qualcomm's backend and of plots in any order.
"""

import contextlib

with contextlib.suppress(ImportError):
    import matplotlib.ft2font  # noqa: F401
