"""Example inputs and targets, from files and from shapes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from model_files import Tied, state_file
from torch import nn

from pockmobile.errors import ModelFileError, PockmobileError, UsageError
from pockmobile.loading.examples import all_examples, example_batch, own_batch_size
from pockmobile.loading.files import FileKind, kind_of
from pockmobile.loading.models import LoadedModel
from pockmobile.loading.shapes import InputShape, parse_shape


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("3,224,224", InputShape(None, (3, 224, 224))),
        ("128:int64", InputShape(None, (128,), "int64")),
        ("mask=128:bool", InputShape("mask", (128,), "bool")),
        ("image=3, 8, 8", InputShape("image", (3, 8, 8))),
    ],
)
def test_input_shapes(text: str, shape: InputShape) -> None:
    assert parse_shape(text) == shape


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3x224x224", "is no input shape: expected the shape of one example"),
        ("", "is no input shape"),
        ("3,0", "has a size of 0"),
        ("3:float8", "has dtype 'float8': expected float32, int64"),
    ],
)
def test_wrong_input_shapes(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_shape(text)


def test_shapes_become_a_batch() -> None:
    shapes = [parse_shape("5:int64"), parse_shape("mask=5")]
    batch = example_batch(LoadedModel(Tied(), "tied"), shapes=shapes, batch_size=3)
    assert torch.equal(batch.args[0], torch.zeros(3, 5, dtype=torch.int64))
    assert batch.kwargs["mask"].shape == (3, 5)
    assert batch.kwargs["mask"].std() > 0
    assert batch.targets is None
    assert example_batch(LoadedModel(Tied(), "tied"), shapes=shapes).args[0].shape == (8, 5)


@pytest.mark.parametrize("form", ["safetensors", "npz", "pt"])
def test_a_file_of_examples(tmp_path: Path, form: str) -> None:
    path = tmp_path / "examples.data"
    tensors = {"ids": torch.ones(2, 5, dtype=torch.int64), "mask": torch.ones(2, 5)}
    targets = {"targets": torch.zeros(2, 5, dtype=torch.int64)}
    match form:
        case "safetensors":
            safetensors.torch.save_file(tensors | targets, path)
        case "npz":
            with path.open("wb") as file:
                arrays = {name: value.numpy() for name, value in (tensors | targets).items()}
                np.savez(file, **arrays | {"mask": np.ones((2, 5))})
        case _:
            torch.save(tensors | targets, path)
    batch = example_batch(LoadedModel(Tied(), "tied"), file=path, batch_size=3)
    assert batch.args == ()
    assert {name: value.dtype for name, value in batch.kwargs.items()} == {
        "ids": torch.int64,
        "mask": torch.float32,
    }
    assert batch.targets is not None
    assert batch.targets[0].shape == (3, 5)


@pytest.mark.parametrize("content", [torch.ones(2, 3), [torch.ones(2, 3)], (torch.ones(2, 3),)])
def test_examples_by_position(tmp_path: Path, content: Any) -> None:
    batch = example_batch(
        LoadedModel(nn.Linear(3, 2), "linear"), file=state_file(tmp_path, content)
    )
    assert torch.equal(batch.args[0], torch.ones(2, 3))


def test_arrays_without_names_are_inputs_by_position(tmp_path: Path) -> None:
    path = tmp_path / "examples.npz"
    np.savez(path, np.ones((2, 3), np.float32), target=np.zeros(2, np.int64))
    batch = example_batch(LoadedModel(nn.Linear(3, 2), "linear"), file=path)
    assert batch.args[0].shape == (2, 3)
    assert batch.targets is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"inptu": torch.ones(2, 3)}, "forward() has no parameter 'inptu': did you mean input"),
        ([torch.ones(2, 3)] * 2, "do not fit forward(input): too many positional arguments"),
        ({"input": torch.ones(2, 3), "label": torch.ones(3)}, "input: 2, target 0: 3"),
        ({"input": torch.tensor(1.0)}, "dimension 0 is input: 0"),
        ({"input": "text"}, "input in {path} is a str, not a tensor"),
        ("text", "holds a str; expected a tensor"),
        ({"target": torch.ones(2)}, "there are no example inputs: add --example-inputs"),
        ({"input": np.float64}, "save plain tensors, or a dict of them"),
    ],
)
def test_examples_that_do_not_fit(tmp_path: Path, content: Any, message: str) -> None:
    path = state_file(tmp_path, content)
    with pytest.raises(PockmobileError) as caught:
        example_batch(LoadedModel(nn.Linear(3, 2), "linear"), file=path)
    assert message.format(path=path) in str(caught.value)
    assert caught.value.exit_status == 2


def test_numpy_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.npz"
    np.savez(path, input=np.array([{}], dtype=object))
    assert kind_of(path) is FileKind.NUMPY
    with pytest.raises(ModelFileError, match="holds more than arrays of numbers"):
        example_batch(LoadedModel(nn.Linear(3, 2), "linear"), file=path)


def test_a_text_file_gives_no_examples(tmp_path: Path) -> None:
    path = tmp_path / "examples.csv"
    path.write_text("1,2,3,4,5,6,7,8,9,10\n")
    with pytest.raises(
        ModelFileError, match=r"tensors are read from .safetensors, .npz or .pt"
    ):
        example_batch(LoadedModel(nn.Linear(3, 2), "linear"), file=path)


def archive_of_two_inputs() -> LoadedModel:
    """Exported for batches of 2, with the second input by keyword."""
    args, kwargs = (torch.zeros(2, 5, dtype=torch.int64),), {"mask": torch.ones(2, 5)}
    return LoadedModel(torch.export.export(Tied(), args, kwargs), "tied", args, kwargs)


def test_all_examples_of_a_file(tmp_path: Path) -> None:
    mask, ids = torch.rand(7, 5), torch.randint(0, 10, (7, 5))
    path = state_file(tmp_path, {"mask": mask, "ids": ids, "labels": ids})
    batch = all_examples(archive_of_two_inputs(), path, 2)
    assert torch.equal(batch.args[0], ids)
    assert torch.equal(batch.kwargs["mask"], mask)
    assert batch.targets is not None
    assert torch.equal(batch.targets[0], ids)
    batch = all_examples(LoadedModel(Tied(), "tied"), path, 4)
    assert torch.equal(batch.kwargs["ids"], ids)


@pytest.mark.parametrize(
    ("content", "batch_size", "message"),
    [
        ({"ids": torch.zeros(7, 5, dtype=torch.int64)}, 2, "takes 2 inputs .ids, mask., found"),
        ([torch.zeros(7, 5, dtype=torch.int64), torch.ones(7, 5)], 3, "found .3, 5."),
        ([torch.zeros(7, 5), torch.ones(7, 5)], 2, "found .2, 5. and torch.float32"),
        ([torch.zeros(7, 5), torch.ones(6, 5)], 2, "no batch of one size"),
    ],
)
def test_all_examples_must_fit(
    tmp_path: Path, content: Any, batch_size: int, message: str
) -> None:
    path = state_file(tmp_path, content)
    with pytest.raises(ModelFileError, match=message):
        all_examples(archive_of_two_inputs(), path, batch_size)


def test_the_batch_is_that_of_the_archive() -> None:
    assert own_batch_size(archive_of_two_inputs()) == 2
    assert own_batch_size(LoadedModel(Tied(), "tied")) == 8
