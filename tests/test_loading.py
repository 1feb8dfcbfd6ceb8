"""State dicts, pickles and other files: what is read, what is refused, and how it is said."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from model_files import FACTORY, Bomb, Tied, load, state_file
from torch import nn

from pockmobile.errors import ModelFileError, UsageError
from pockmobile.loading.factory import parse_factory


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_state_dict_fills_the_module(tmp_path: Path, form: str) -> None:
    state = {name: torch.randn_like(value) for name, value in Tied().state_dict().items()}
    state["head.weight"] = state["embed.weight"]
    path = tmp_path / "weights.bin"
    if form == "safetensors":
        # It refuses shared tensors: a tied weight is stored once.
        safetensors.torch.save_file(
            {k: v for k, v in state.items() if k != "head.weight"}, path
        )
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    loaded = load(path, FACTORY)
    assert loaded.name == "Tied"
    assert isinstance(loaded.model, Tied)
    assert torch.equal(loaded.model.head.weight, state["embed.weight"])


def test_a_state_dict_needs_a_model(tmp_path: Path) -> None:
    path = state_file(tmp_path, Tied().state_dict())
    with pytest.raises(
        UsageError, match=r"weights without the model: add --model package.module:"
    ):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"scale": torch.ones(4)}, "missing embed.weight, head.weight; unexpected none"),
        (
            {**Tied().state_dict(), **{f"x{index}": torch.ones(1) for index in range(5)}},
            "missing none; unexpected x0, x1, x2 and 2 more",
        ),
        ({"scale": torch.ones(3)}, "scale is [3], expected [4]"),
        ({"epoch": 3, "model": {}}, "is no state dict (no tensors: epoch, model)"),
        ({}, "is no state dict"),
        ([1, 2], "holds a list, expected a module or a state dict"),
    ],
)
def test_a_state_dict_that_does_not_fit(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        load(state_file(tmp_path, content), FACTORY)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("make_tied", "expected package.module:function"),
        ("model_files:make_tide", "did you mean make_tied"),
        ("model_files:FACTORY", "is a str, expected a function or class"),
        ("no_such_module:make", "cannot import no_such_module: no module named"),
        ("model_files:make_with_argument", "without arguments (missing a required argument"),
        ("model_files:make_string", "returned a str, expected a torch.nn.Module"),
    ],
)
def test_a_wrong_factory(tmp_path: Path, factory: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(state_file(tmp_path, Tied().state_dict()), factory)
    assert message in str(caught.value)


def test_a_factory_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_factory_module.py").write_text("class Maker:\n    make = dict\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert parse_factory("my_factory_module:Maker.make") is dict


# Pickles and other files


def test_a_pickled_module_is_refused_unless_trusted(tmp_path: Path) -> None:
    path = state_file(tmp_path, Tied())
    with pytest.raises(ModelFileError) as caught:
        load(path)
    message = str(caught.value)
    assert "loading it runs code from the file" in message
    assert "--trust-pickle" in message
    assert "torch.export.save" in message
    assert "\n" not in message
    assert isinstance(load(path, trust=True).model, Tied)


def test_an_untrusted_pickle_runs_nothing(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    path = state_file(tmp_path, {"weight": Bomb(bomb)})
    with pytest.raises(ModelFileError, match="runs code from the file"):
        load(path, FACTORY)
    assert not bomb.exists()


def test_a_pickle_whose_class_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = state_file(tmp_path, Tied())
    monkeypatch.delattr("model_files.Tied")
    with pytest.raises(ModelFileError, match="needs code that cannot be imported here"):
        load(path, trust=True)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    with pytest.raises(
        ModelFileError, match="is a TorchScript archive, which cannot be exported"
    ):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# a text file\n", "is no file of a known kind"),
        (b"PK\x03\x04 no archive", "is damaged"),
        (b"\x80\x02 no pickle", "is damaged"),
        (b"\x08\0\0\0\0\0\0\0{garbage", "is damaged"),
        (b"\x20\0\0\0ET12" + bytes(20), "it is exported already"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path} is ")
    assert message in text
    assert "\n" not in text


def test_a_truncated_file_is_damaged(tmp_path: Path) -> None:
    path = state_file(tmp_path, Tied().state_dict())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelFileError, match="is damaged"):
        load(path)


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"cannot read .*: No such file or directory"):
        load(tmp_path / "missing.pt")
    with pytest.raises(ModelFileError, match="is a directory; give a file"):
        load(tmp_path)
