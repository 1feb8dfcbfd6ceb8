"""Archives of torch.export: what is read, and that nothing in them is executed."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from model_files import FACTORY, Bomb, Tied, load
from torch import nn
from torch.export import Dim, ExportedProgram

from pockmobile.errors import ModelFileError, UsageError
from pockmobile.loading.examples import example_batch
from pockmobile.loading.shapes import parse_shape


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive with a dynamic batch, saved under a name that ends in .pt."""
    path = tmp_path / "tied.pt"
    batch = Dim("batch", min=2, max=64)
    exported = torch.export.export(
        Tied(),
        (torch.zeros(4, 5, dtype=torch.int64),),
        {"mask": torch.ones(4, 5)},
        dynamic_shapes={"ids": {0: batch}, "mask": {0: batch}},
    )
    with path.open("wb") as file:
        torch.export.save(exported, file)
    return path


def rewrite(path: Path, entry: str, change: Callable[[bytes], bytes] | None = None) -> None:
    """Changes the entries of an archive whose names end in `entry`, or adds one."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    root = next(iter(entries)).split("/")[0]
    if change is None:
        entries[f"{root}/{entry}"] = b"added"
    for name in entries if change else ():
        if name.endswith(entry):
            entries[name] = change(entries[name])
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)


def replace_text(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old.encode() in data
        return data.replace(old.encode(), new.encode())

    return change


def test_an_archive_gives_the_program_and_its_inputs(archive: Path) -> None:
    loaded = load(archive)
    assert isinstance(loaded.model, ExportedProgram)
    assert loaded.name == "tied"
    batch = example_batch(loaded)
    assert batch.args[0].shape == (4, 5)
    assert list(batch.kwargs) == ["mask"]
    assert loaded.model.module()(*batch.args, **batch.kwargs).shape == (4, 5, 10)


@pytest.mark.parametrize("batch_size", [3, 4, 10])
def test_example_inputs_are_repeated_or_cut(archive: Path, batch_size: int) -> None:
    batch = example_batch(load(archive), batch_size=batch_size)
    assert batch.args[0].shape == (batch_size, 5)
    assert batch.kwargs["mask"].shape == (batch_size, 5)


def test_a_fixed_batch_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "linear.pt2"
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.ones(4, 3),)), path)
    with pytest.raises(
        ModelFileError, match=r"shape \[4, 3\] and torch.float32, found \[8, 3\]"
    ):
        example_batch(load(path), batch_size=8)


def test_sizes_that_are_expressions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "flat.pt2"
    sizes = {0: Dim("batch", min=2, max=9), 1: 2 * Dim("half", min=2, max=9)}
    exported = torch.export.export(
        nn.Flatten(), (torch.ones(4, 6, 2),), dynamic_shapes=(sizes,)
    )
    torch.export.save(exported, path)
    assert isinstance(load(path).model, ExportedProgram)


def test_an_archive_takes_no_factory(archive: Path) -> None:
    with pytest.raises(UsageError, match="holds the model itself; leave --model out"):
        load(archive, FACTORY)


def test_examples_for_an_archive_are_matched_by_name(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "examples.safetensors"
    examples = {
        "mask": torch.ones(2, 5),
        "ids": torch.ones(2, 5, dtype=torch.int64),
        "labels": torch.zeros(2, 5, dtype=torch.int64),
    }
    safetensors.torch.save_file(examples, path)
    batch = example_batch(load(archive), file=path)
    assert torch.equal(batch.args[0], examples["ids"])
    assert batch.targets is not None
    assert torch.equal(batch.targets[0], examples["labels"])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["5:int64"], "takes 2 inputs (ids, mask), found 1"),
        (["ids=5:int64", "masc=5"], "has no input 'masc': did you mean mask"),
        (["ids=5:int64", "mask=6"], "for mask of shape [any, 5]"),
        (["ids=5", "mask=5"], "torch.int64, found [8, 5] and torch.float32"),
    ],
)
def test_examples_that_do_not_fit_an_archive(
    archive: Path, shapes: list[str], message: str
) -> None:
    with pytest.raises(ModelFileError) as caught:
        example_batch(load(archive), shapes=[parse_shape(text) for text in shapes])
    assert message in str(caught.value)


SHELL = "__import__('os').system('touch {bomb}')"
ATTACKS = [
    ("operator", "models/model.json", "torch.ops.aten.linear.default", "torch.os.system"),
    ("builtin", "models/model.json", "torch.ops.aten.linear.default", "_operator.methodcaller"),
    (
        "library",
        "models/model.json",
        "torch.ops.aten.linear.default",
        "torch.ops.load_library.a",
    ),
    ("size", "models/model.json", "Symbol('s", SHELL + " or Symbol('s"),
    ("lambda", "models/model.json", "Symbol('s", "lambdify('s'," + SHELL + ") or Symbol('s"),
    ("guard", "models/model.json", "L['ids'].size()[0]", SHELL),
    ("placeholder", "models/model.json", '"ids"', f'"ids={SHELL}"'),
    ("weight", "model_weights_config.json", '"use_pickle": false', '"use_pickle": true'),
    ("tree", "models/model.json", "builtins.dict", "collections.defaultdict"),
]


@pytest.mark.parametrize(("entry", "old", "new"), [case[1:] for case in ATTACKS])
def test_an_archive_that_would_run_code_is_refused(
    archive: Path, tmp_path: Path, entry: str, old: str, new: str
) -> None:
    bomb = tmp_path / "bomb"
    rewrite(archive, entry, replace_text(old, new.format(bomb=bomb)))
    with pytest.raises(ModelFileError, match=r"is refused|cannot be read"):
        load(archive)
    assert not bomb.exists()


@pytest.mark.parametrize(
    "entry",
    [
        "data/aotinductor/model/a.so",
        "data/weights/model.pt",
        "data/constants/custom_obj_0",
        "models/other.json",
    ],
)
def test_an_archive_with_foreign_entries_is_refused(archive: Path, entry: str) -> None:
    rewrite(archive, entry)
    with pytest.raises(ModelFileError, match=f"it holds {entry}, which torch.export.save does"):
        load(archive)


def test_pickled_example_inputs_are_refused(archive: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    torch.save(((Bomb(bomb),), {}), tmp_path / "inputs.pt")
    data = (tmp_path / "inputs.pt").read_bytes()
    rewrite(archive, "sample_inputs/model.pt", lambda _: data)
    with pytest.raises(ModelFileError, match="example inputs are more than plain tensors"):
        load(archive)
    assert not bomb.exists()


def test_a_damaged_archive_is_refused(archive: Path) -> None:
    rewrite(archive, "models/model.json", lambda data: data[: len(data) // 2])
    with pytest.raises(
        ModelFileError, match=r"cannot be read by torch .*; export the model again"
    ):
        load(archive)


def test_an_archive_of_an_older_torch_is_named(tmp_path: Path) -> None:
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("serialized_exported_program.json", "{}")
    with pytest.raises(
        ModelFileError, match=r"of torch 2.7 or earlier, which cannot be exported"
    ):
        load(path)
