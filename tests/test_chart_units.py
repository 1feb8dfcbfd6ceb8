"""Numbers read as people write them."""

import math

from pockmobile.chart.units import (
    MINUS,
    UNKNOWN,
    byte_unit,
    compared_text,
    count_text,
    duration_text,
    gain_text,
    half_width_text,
    metric_text,
    percent_text,
    signed,
)


def test_metrics() -> None:
    assert metric_text("accuracy", 0.8419) == "84.2 %"
    assert metric_text("accuracy", 0.8419, 0.0061) == "84.2 ± 0.6 %"
    assert metric_text("loss", -3.2141, 0.01) == "3.214 ± 0.010 nats"
    assert metric_text("loss", -3.2141, math.inf) == "3.214 nats"
    assert metric_text("loss", -math.inf) == UNKNOWN


def test_gains() -> None:
    assert gain_text("accuracy", 0.013) == "+1.3 points"
    assert gain_text("loss", -0.012) == f"{MINUS}0.012 nats"
    assert gain_text("accuracy", -0.0001) == "0.0 points"
    assert gain_text("accuracy", math.nan) == UNKNOWN
    assert half_width_text("accuracy", 0.004) == "± 0.4"
    assert half_width_text("accuracy", math.inf) == UNKNOWN
    assert signed(0.01, 1) == "0.0"


def test_comparisons() -> None:
    assert compared_text("accuracy", -0.003) == "0.3 points worse than"
    assert compared_text("loss", 0.25) == "0.250 nats better than"
    assert compared_text("accuracy", 0.0002) == "as good as"


def test_units_and_counts() -> None:
    assert byte_unit([900, 7_412_000]) == ("MB", 10**6)
    assert byte_unit([]) == ("B", 1)
    assert percent_text(0.372) == "37 %"
    assert percent_text(0.0321) == "3.2 %"
    assert percent_text(0.0996) == "10 %"
    assert percent_text(math.nan) == UNKNOWN
    assert count_text(1, "layer") == "1 layer"
    assert count_text(1234, "layer") == "1,234 layers"
    assert duration_text(12.4) == "12 s"
    assert duration_text(59.7) == "1 min 0 s"
    assert duration_text(812.4) == "13 min 32 s"
    assert duration_text(7805) == "2 h 10 min"
