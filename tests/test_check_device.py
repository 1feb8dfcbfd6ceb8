"""The check on a phone: with a phone that is a folder, and a runner that adds up its state."""

import json
import os
import stat
import struct
import subprocess
from pathlib import Path
from typing import Final

import pytest
from safetensors.torch import load_file

import pockmobile
from scripts import device_fixture
from scripts.device_fixture import main

_SCRIPT: Final = Path("scripts/check_device_android.sh")
_ADB: Final = """#!/usr/bin/env bash
local_path() { echo "$PHONE${1#/data/local/tmp}"; }
case $1 in
  shell) eval "${2//\\/data\\/local\\/tmp/$PHONE}" ;;
  push) cp -r "$2" "$(local_path "$3")" ;;
  pull) cp "$(local_path "$2")" "$3" ;;
esac
"""
_RUNNER: Final = """#!/usr/bin/env python3
import struct, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert options["--method_index"] == "2", options
state, value = open(options["--input_list_path"]).read().split()
numbers = [struct.unpack("<f", open(name, "rb").read())[0] for name in (state, value)]
for index, number in enumerate((sum(numbers), sum(numbers))):
    with open(f"{options['--output_folder_path']}/output_0_{index}.raw", "wb") as file:
        file.write(struct.pack("<f", number))
"""


@pytest.fixture
def fixture(tmp_path: Path) -> Path:
    """Of a program whose state is one number, to which each step adds its input."""
    folder = tmp_path / "fixture"
    folder.mkdir()
    values, losses = [1.0, 2.0, 3.0], [11.0, 13.0, 16.0]
    (folder / "model.pte").write_bytes(b"")
    (folder / "state_0.bin").write_bytes(struct.pack("<f", 10.0))
    for index, value in enumerate(values):
        (folder / f"x_{index}.bin").write_bytes(struct.pack("<f", value))
    steps = [{"loss": loss, "inputs": [f"x_{i}"]} for i, loss in enumerate(losses)]
    (folder / "fixture.json").write_text(json.dumps({"loss_relative": 0.01, "steps": steps}))
    (folder / "steps.txt").write_text("".join(f"{x} x_{i}.bin\n" for i, x in enumerate(losses)))
    (folder / "method.txt").write_text("2 1\n")
    return folder


def _run(tmp_path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    tools = tmp_path / "tools"
    (tmp_path / "libraries").mkdir(exist_ok=True)
    tools.mkdir(exist_ok=True)
    for path, text in ((tools / "adb", _ADB), (tmp_path / "runner", _RUNNER)):
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PHONE": str(tmp_path / "phone"),
    }
    command = [_SCRIPT, *arguments, tmp_path / "runner", tmp_path / "libraries"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_each_step_goes_on_from_the_state_of_the_one_before(
    fixture: Path, tmp_path: Path
) -> None:
    found = _run(tmp_path, fixture)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-2:] == [
        "step 2: 16.00000, expected 16.00000",
        "all losses agree",
    ]


def test_another_loss_is_told(fixture: Path, tmp_path: Path) -> None:
    (fixture / "x_1.bin").write_bytes(struct.pack("<f", 2.5))
    found = _run(tmp_path, fixture)
    assert found.returncode == 1
    assert "step 1: 13.50000, expected 13.00000 WRONG" in found.stdout
    assert found.stdout.splitlines()[-1] == "2 of 3 losses are wrong"


def test_a_dry_run_only_tells_what_it_would_do(fixture: Path, tmp_path: Path) -> None:
    found = _run(tmp_path, "--dry-run", fixture)
    assert found.returncode == 0, found.stderr
    assert not (tmp_path / "phone").exists()
    lines = found.stdout.splitlines()
    assert sum(line.startswith("adb pull") for line in lines) == 3
    assert sum("method_index" in line for line in lines) == 3


def test_a_folder_that_is_no_fixture(tmp_path: Path) -> None:
    found = _run(tmp_path, tmp_path)
    assert found.returncode == 2
    assert found.stderr == (
        f"error: {tmp_path} has no steps.txt; make it with device_fixture.py\n"
    )


def test_a_fixture_holds_what_the_program_takes(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    arguments = ["--target", "portable", "--subject", "mlp", "--steps", "2", "-o", str(folder)]
    assert main(arguments) == 0
    fixture = json.loads((folder / "fixture.json").read_text())
    session, tensors = (
        pockmobile.Session(folder / "model.pte"),
        load_file(folder / "inputs.safetensors"),
    )
    for step in fixture["steps"]:
        inputs, labels, lr = (tensors[name] for name in step["inputs"])
        loss = session.step(inputs, labels, lr=float(lr))
        assert loss == pytest.approx(step["loss"], rel=device_fixture.LOSS_RELATIVE["fp32"])
    for name, value in tensors.items():
        assert (folder / f"{name}.bin").read_bytes() == value.numpy().tobytes()
