"""The manifest survives its JSON, refuses what is not one, and reads well as a report."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from pockmobile.artifact.manifest import Manifest, StateEntry, Tensor
from pockmobile.artifact.report import human_bytes, render
from pockmobile.errors import ArtifactError
from pockmobile.plan import Slice
from tests.tiny_program import tiny_manifest


def test_json_round_trip_is_identity() -> None:
    manifest = tiny_manifest()
    part = StateEntry("w", "w", "parameter", Slice(1, 0, 8), (4, 8), "float32")
    target = Tensor("y", "target", (4,), "float32", None, 1.5, "nan")
    method = replace(manifest.methods["evaluate"], inputs=(target,))
    changed = replace(
        manifest, state=(part,), clip_norm=1.0, methods={**manifest.methods, "evaluate": method}
    )
    for each in (manifest, changed):
        assert Manifest.from_json(each.to_json()) == each


def test_json_has_the_fields_of_the_contract() -> None:
    value = json.loads(tiny_manifest().to_json())
    assert next(iter(value)) == "format"
    assert value["format"] == 1
    assert value["methods"]["train_step"]["inputs"][3] == {
        "name": "kinds",
        "role": "input",
        "shape": [4],
        "dtype": "int64",
        "low": 0,
        "high": 5,
        "ignored": None,
    }
    assert value["plan"]["update"]["head.bias"] == {"dim": 0, "start": 0, "stop": 3}
    assert value["state"][0]["slice"] is None
    assert value["optimizer"] == {"name": "sgd", "weight_decay": 0.0}


def test_unknown_fields_are_ignored() -> None:
    value = json.loads(tiny_manifest().to_json())
    value["model"]["colour"] = "blue"
    assert Manifest.from_json(json.dumps(value)) == tiny_manifest()


def test_ignored_value_of_float_targets_is_nan() -> None:
    assert math.isnan(Tensor("y", "target", (1,), "float32", ignored="nan").ignored_value or 0)
    assert Tensor("y", "target", (1,), "int64", ignored=-100).ignored_value == -100
    assert Tensor("y", "target", (1,), "int64").ignored_value is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the manifest is not JSON"),
        ("[1]", "the manifest is not a JSON object"),
        ('{"format": 2}', "the manifest has format 2, this pockmobile reads format 1"),
        ("{}", "the manifest has format None, this pockmobile reads format 1"),
        ('{"format": 1}', "manifest has no field 'versions'"),
    ],
)
def test_wrong_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    ("path", "wrong", "message"),
    [
        (("state_bytes",), "5", r"manifest\.state_bytes is '5', expected int"),
        (("state_bytes",), True, r"manifest\.state_bytes is True, expected int"),
        (("clip_norm",), "1", r"manifest\.clip_norm is '1', expected float or null"),
        (("methods",), [], r"manifest\.methods is \[\], expected an object"),
        (("model",), None, r"manifest\.model is None, expected an object"),
        (("metrics",), "x", r"manifest\.metrics is 'x', expected a list of str"),
        (
            ("state", 0, "shape"),
            [1.5],
            r"manifest\.state\[0\]\.shape\[0\] is 1\.5, expected int",
        ),
        (
            ("state", 0, "slice"),
            3,
            r"manifest\.state\[0\]\.slice is 3, expected an object or null",
        ),
        (("state", 0, "dtype"), "int4", r"state\[0\]\.dtype is 'int4', expected 'float64' or "),
        (("plan", "update", "head.bias"), {"dim": 0}, r"head\.bias has no field 'start'"),
    ],
)
def test_wrong_fields_are_refused(
    path: tuple[str | int, ...], wrong: object, message: str
) -> None:
    value = json.loads(tiny_manifest().to_json())
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = wrong
    with pytest.raises(ArtifactError, match=message):
        Manifest.from_json(json.dumps(value))


def test_missing_method_is_refused() -> None:
    value = json.loads(tiny_manifest().to_json())
    del value["methods"]["predict"]
    with pytest.raises(ArtifactError, match=r"manifest\.methods has no 'predict'"):
        Manifest.from_json(json.dumps(value))


def test_manifest_needs_no_torch() -> None:
    code = (
        "import sys, pockmobile.artifact.manifest, pockmobile.artifact.report, "
        "pockmobile.artifact.program; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (1_234_567, "1.2 MB"),
        (5_600_000_000, "5.6 GB"),
    ],
)
def test_human_bytes(num_bytes: int, text: str) -> None:
    assert human_bytes(num_bytes) == text


def test_report() -> None:
    assert render(tiny_manifest(), 12_345_678) == REPORT.strip("\n")


def test_report_of_a_sliced_and_delegated_program() -> None:
    manifest = tiny_manifest()
    part = StateEntry("w", "w", "parameter", Slice(1, 0, 8), (4, 8), "float32")
    momentum = StateEntry("w.momentum", "w", "momentum", Slice(1, 0, 8), (4, 8), "float32")
    method = replace(manifest.methods["predict"], num_delegated=7, num_partitions=1, outside=())
    report = render(
        replace(manifest, state=(part, momentum), methods={"predict": method}, clip_norm=1.0),
        10,
    )
    assert "trained: 1 tensor, 32 values\n  w[:, 0:8]  4 x 8  32\n" in report
    assert "predict  12.3 kB      678 B          8     87.5 %           1" in report
    assert "weight_decay=0.0, clipped at norm 1" in report
    assert report.endswith("outside the delegate: nothing")


REPORT = """
model      TinyClassifier for portable
loss       cross_entropy
optimizer  sgd weight_decay=0.0
plan       head
file       12.3 MB
state      72 B
frozen     120 B
nodes      1,900 captured, 60 after pruning, 41 lowered
made by    pockmobile 0.1.0, torch 2.13.0, executorch 1.5.1

trained: 2 tensors, 18 values
  head.weight  3 x 5  15
  head.bias    3       3

method      planned  workspace  operators  delegated  partitions
train_step  12.3 kB      678 B          8      0.0 %           0
evaluate    12.3 kB      678 B          8      0.0 %           0
predict     12.3 kB      678 B          8      0.0 %           0

outside the delegate: 24 operators
  train_step  8 x  aten.mm.default  head  the portable target delegates nothing
  evaluate    8 x  aten.mm.default  head  the portable target delegates nothing
  predict     8 x  aten.mm.default  head  the portable target delegates nothing
"""
