"""A Llama of 100 million parameters trains through its `.pte` in 1.5 GB, as was forecast."""

from pathlib import Path

import pytest

from scripts.llama_on_phone import measure


@pytest.mark.slow
def test_it_trains_in_little_memory_as_was_forecast(tmp_path: Path) -> None:
    real, told, trained = (
        measure(stage, tmp_path) for stage in ("export", "forecast", "train")
    )
    for key in ("file", "frozen", "state", "planned", "workspace"):
        assert told[key] == pytest.approx(real[key], rel=0.1), key
    assert real["peak"] < 6e9
    assert trained["peak"] < 1.5e9
    # A whole process's peak, which no later step raises by much.
    assert trained["memory over steps"][-1] < 1.05 * trained["memory over steps"][0]
    assert trained["losses"][-1] < 0.3 * trained["losses"][0]
