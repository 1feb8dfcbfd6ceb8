"""Training by a device's fixture on this machine."""

import json
from pathlib import Path

import pytest

from scripts import check_fixture, device_fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fixture")
    options = ["--target", "xnnpack", "--subject", "mlp", "--steps", "5"]
    assert device_fixture.main(["-o", str(path), *options]) == 0
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
    fixture = json.loads((folder / "fixture.json").read_text())
    fixture["steps"][3]["loss"] += 0.01
    (tmp_path / "fixture.json").write_text(json.dumps(fixture))
    assert check_fixture.main([str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert "WRONG" in output.out.splitlines()[4]
    assert "1 of 5 losses are further from eager PyTorch's than 0.0001 of them" in output.err


def test_an_option_of_another_target_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert device_fixture.main(["-o", str(tmp_path), "--soc", "SM8650"]) == 2
    assert "--soc needs --target qnn, found xnnpack" in capsys.readouterr().err
