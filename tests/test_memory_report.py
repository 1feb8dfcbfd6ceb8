"""The report draws memory over a training step."""

import json
from dataclasses import replace

import torch

import pockmobile
from pockmobile.artifact.manifest import Manifest, Moment
from pockmobile.artifact.report import render
from pockmobile.models import residual_cnn
from tests.tiny_program import tiny_manifest


def with_moments(*moments: Moment) -> Manifest:
    manifest = tiny_manifest()
    step = replace(manifest.methods["train_step"], moments=moments)
    return replace(manifest, methods={**manifest.methods, "train_step": step})


def test_bars_are_as_high_as_memory() -> None:
    moments = [Moment(0, ""), Moment(500, "a"), Moment(1000, "b"), Moment(1, "c")]
    lines = render(with_moments(*moments), 0).splitlines()
    place = lines.index("workspace over train_step, at most 1.0 kB in b")
    assert lines[place + 1] == "   ▄█▁"


def test_a_method_without_delegates_has_none() -> None:
    assert "workspace over" not in render(tiny_manifest(), 0)


def test_a_program_that_was_made_before_is_read() -> None:
    value = json.loads(with_moments(Moment(5, "a")).to_json())
    assert value["methods"]["train_step"].pop("moments") == [{"num_bytes": 5, "module": "a"}]
    assert Manifest.from_json(json.dumps(value)) == tiny_manifest()


def test_the_peak_is_the_workspace_but_for_gaps() -> None:
    torch.manual_seed(0)
    program = pockmobile.compile(residual_cnn(), (torch.randn(4, 3, 16, 16),))
    method = program.manifest.methods["train_step"]
    assert 1 < len(method.moments) <= 72
    peak = max(moment.num_bytes for moment in method.moments)
    # Gaps between values come on top.
    assert peak <= method.workspace_bytes <= 1.02 * peak
    assert all(moment.module for moment in method.moments[:3])
    assert "workspace over train_step" in program.report()
    assert program.manifest.methods["predict"].moments == ()
