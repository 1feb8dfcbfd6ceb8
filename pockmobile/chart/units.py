"""Numbers as people read them: percent, points, nats, bytes and minutes."""

import math
from collections.abc import Iterable
from typing import Final

from pockmobile.artifact.report import human_bytes
from pockmobile.chart.analysis import Metric

UNKNOWN: Final = "\N{EN DASH}"
MINUS: Final = "\N{MINUS SIGN}"
_GAIN: Final = {"accuracy": ("points", 100.0, 1), "loss": ("nats", 1.0, 3)}
GAINS_IN: Final[Metric] = "loss"
"""Contributions of layers are measured in this, whatever the metric of the plans."""
_BYTES: Final = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}


def gain_unit(metric: Metric) -> tuple[str, float]:
    """Returns the unit of a gain, and how many of it are a gain of 1."""
    return _GAIN[metric][:2]


def byte_unit(values: Iterable[int]) -> tuple[str, int]:
    """Returns the unit that suits the largest of the values, and its bytes."""
    name = human_bytes(max(values, default=0)).split()[-1]
    return name, _BYTES[name]


def gain_text(metric: Metric, gain: float) -> str:
    """Returns a gain with its sign: `+1.3 points`."""
    unit, factor, decimals = _GAIN[metric]
    if not math.isfinite(gain):
        return UNKNOWN
    return f"{signed(gain * factor, decimals)} {unit}"


def half_width_text(metric: Metric, half_width: float) -> str:
    """Returns the half of an interval: `± 0.4`."""
    _, factor, decimals = _GAIN[metric]
    return f"± {half_width * factor:.{decimals}f}" if math.isfinite(half_width) else UNKNOWN


def metric_text(metric: Metric, value: float, half_width: float | None = None) -> str:
    """Returns a metric as it is known: `84.2 ± 0.6 %`, or a loss as `3.214 ± 0.010 nats`."""
    _, factor, decimals = _GAIN[metric]
    if not math.isfinite(value):
        return UNKNOWN
    shown = value * factor if metric == "accuracy" else -value
    spread = ""
    if half_width is not None and math.isfinite(half_width):
        spread = f" {half_width_text(metric, half_width)}"
    unit = "%" if metric == "accuracy" else "nats"
    return f"{_text(shown, decimals)}{spread} {unit}"


def compared_text(metric: Metric, difference: float) -> str:
    """Returns a difference in words: `0.3 points worse than`, `as good as`."""
    unit, factor, decimals = _GAIN[metric]
    size = f"{abs(difference) * factor:.{decimals}f}"
    if float(size) == 0:
        return "as good as"
    return f"{size} {unit} {'better' if difference > 0 else 'worse'} than"


def percent_text(ratio: float) -> str:
    """Returns a ratio in whole percent, or to one decimal below ten."""
    if not math.isfinite(ratio):
        return UNKNOWN
    return f"{ratio * 100:.{0 if abs(ratio) >= 0.0995 else 1}f} %"


def unbroken(text: str) -> str:
    """Returns a text that no line breaks: a number stays with its unit."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def duration_text(seconds: float) -> str:
    """Returns a duration: `12 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count_text(count: int, noun: str) -> str:
    """Returns `1 layer`, `1,234 layers`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def signed(value: float, decimals: int) -> str:
    """Returns a number with its sign; what rounds to 0 has none."""
    text = _text(value, decimals)
    return f"+{text}" if value > 0 and float(text) else text


def _text(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)
