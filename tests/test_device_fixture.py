"""The fixture by which devices are checked, on this machine's own target."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from scripts import check_fixture, device_fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fixture")
    device_fixture.write_fixture(path, "xnnpack", tolerance=1e-4)
    return path


def test_training_by_it_gives_the_losses_expected(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_fixture.main([str(folder)]) == 0
    assert capsys.readouterr().out.endswith("all losses are as expected\n")


def test_another_loss_is_an_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model.pte", "inputs.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    expected = json.loads((folder / "expected.json").read_text())
    expected["losses"][3] += 0.01
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    assert check_fixture.main([str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert "WRONG" in output.out.splitlines()[4]
    assert "1 of 20 losses are further from eager PyTorch's than 0.0001" in output.err


def test_raw_files_hold_the_same_tensors(folder: Path) -> None:
    tensors = load_file(folder / "inputs.safetensors")
    expected = json.loads((folder / "expected.json").read_text())
    assert expected["format"] == device_fixture.FORMAT
    assert len(tensors) == 2 * len(expected["losses"])
    for item in expected["inputs"]:
        raw = np.fromfile(folder / "inputs" / f"0.{item['name']}.bin", item["dtype"])
        np.testing.assert_array_equal(raw.reshape(item["shape"]), tensors[f"0.{item['name']}"])
