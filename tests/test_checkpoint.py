"""Checkpoints load as they were saved or not at all, whatever befalls the file."""

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest
import safetensors.torch
import torch

from pockmobile.artifact.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pockmobile.artifact.files import atomic_write
from pockmobile.artifact.manifest import StateEntry
from pockmobile.errors import CheckpointError

SHA = "ab" * 32
STATE = (
    StateEntry("w", "w", "parameter", None, (2, 3), "float32"),
    StateEntry("ids", "w", "momentum", None, (4,), "int64"),
    StateEntry("step", "", "step", None, (), "float32"),
)


def _tensors() -> dict[str, torch.Tensor]:
    # The first is a transposed view: what is saved need not be contiguous.
    return {"w": torch.randn(3, 2).t(), "ids": torch.arange(4), "step": torch.tensor(3.0)}


def _save(
    path: Path,
    tensors: Mapping[str, torch.Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    save_checkpoint(
        path, tensors or _tensors(), program_sha256=SHA, num_steps=7, metadata=metadata or {}
    )


def _load(path: Path) -> Checkpoint:
    return load_checkpoint(path, program_sha256=SHA, state=STATE)


def test_round_trip(tmp_path: Path) -> None:
    tensors = _tensors()
    _save(tmp_path / "me.safetensors", tensors, {"user": "Zoë", "gate": "0.5"})
    checkpoint = _load(tmp_path / "me.safetensors")
    assert list(checkpoint.tensors) == [entry.name for entry in STATE]
    assert all(torch.equal(checkpoint.tensors[name], tensors[name]) for name in tensors)
    assert checkpoint.num_steps == 7
    assert checkpoint.metadata == {"user": "Zoë", "gate": "0.5"}
    assert os.listdir(tmp_path) == ["me.safetensors"]


def test_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    _save(tmp_path / "me.safetensors")
    assert safetensors.torch.load_file(tmp_path / "me.safetensors").keys() == _tensors().keys()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*no\.safetensors: No such file"):
        _load(tmp_path / "no.safetensors")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(100), bytes(64)])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "me.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match="is cut short, damaged, or not a safetensors file"
    ):
        _load(path)


def test_pickle_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save(Evil(), tmp_path / "me.safetensors")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        _load(tmp_path / "me.safetensors")
    assert not (tmp_path / "executed").exists()


def test_safetensors_of_another_tool(tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    for metadata in (None, {"format": "pt"}, {"pockmobile_checkpoint": "2"}):
        safetensors.torch.save_file({"w": torch.zeros(2)}, path, metadata)
        with pytest.raises(CheckpointError, match="but not a checkpoint of format 1"):
            _load(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    _save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is cut short"):
            _load(path)


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    _save(path, metadata={"user": "me"})
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            _load(path)


def test_flipped_bit_in_the_data_is_named_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    _save(path)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="is damaged: its contents do not match"):
        _load(path)


def test_checkpoint_of_another_program(tmp_path: Path) -> None:
    _save(tmp_path / "me.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"belongs to program abababababab\.\.\., this one is cdcdcdcdcdcd",
    ):
        load_checkpoint(tmp_path / "me.safetensors", program_sha256="cd" * 32, state=STATE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"w": torch.zeros(3, 2)}, r"holds w as float32 \[3, 2\], .* expects float32 \[2, 3\]"),
        ({"w": torch.zeros(2, 3).double()}, r"holds w as float64 \[2, 3\]"),
        ({"more": torch.zeros(1)}, r"missing \[\], unexpected \['more'\]"),
    ],
)
def test_other_tensors(
    tmp_path: Path, changed: Mapping[str, torch.Tensor], message: str
) -> None:
    _save(tmp_path / "me.safetensors", {**_tensors(), **changed})
    with pytest.raises(CheckpointError, match=message):
        _load(tmp_path / "me.safetensors")


def test_missing_tensor(tmp_path: Path) -> None:
    _save(tmp_path / "me.safetensors", {"w": torch.zeros(2, 3), "ids": torch.arange(4)})
    with pytest.raises(CheckpointError, match=r"missing \['step'\]"):
        _load(tmp_path / "me.safetensors")


def test_metadata_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    with pytest.raises(CheckpointError, match="the metadata key 'num_steps' is reserved"):
        _save(path, metadata={"num_steps": "3"})
    with pytest.raises(CheckpointError, match="the metadata 'gate': 3 is not of strings"):
        _save(path, metadata={"gate": 3})  # type: ignore[dict-item]
    assert not path.exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "me.safetensors"
    _save(path)
    former = path.read_bytes()

    def fail(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*: No space left on device"):
        _save(path)
    monkeypatch.undo()
    assert path.read_bytes() == former
    assert os.listdir(tmp_path) == ["me.safetensors"]


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot write .*: No such file or directory"):
        _save(tmp_path / "missing" / "me.safetensors")


def test_atomic_write_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    atomic_write(tmp_path / "link", b"ne", b"w")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


_SAVES_UNTIL_KILLED = """
import os, random, signal, sys, time, torch
from pockmobile.artifact.checkpoint import load_checkpoint, save_checkpoint
from pockmobile.artifact.manifest import StateEntry

path, tensor = sys.argv[1], torch.randn(200_000)
state = (StateEntry("w", "w", "parameter", None, (200_000,), "float32"),)
rng, before = random.Random(1), 0

def save(num_steps):
    save_checkpoint(path, {"w": tensor + num_steps}, program_sha256="ab", num_steps=num_steps,
                    metadata={})

save(0)
for _ in range(20):
    child = os.fork()
    if child == 0:
        while True:
            before += 1
            save(before)
    time.sleep(0.02 + rng.random() / 20)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    checkpoint = load_checkpoint(path, program_sha256="ab", state=state)
    assert checkpoint.num_steps >= before
    assert torch.equal(checkpoint.tensors["w"], tensor + checkpoint.num_steps)
    before = checkpoint.num_steps
print(before)
"""


def test_killed_while_saving(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SAVES_UNTIL_KILLED, str(tmp_path / "me.safetensors")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5  # saves that came through, or the test shows nothing


def test_random_bytes_never_load(tmp_path: Path) -> None:
    path, rng = tmp_path / "me.safetensors", random.Random(3)
    for _ in range(200):
        header = rng.randbytes(rng.randrange(40))
        path.write_bytes(len(header).to_bytes(8, "little") + header + rng.randbytes(8))
        with pytest.raises(CheckpointError):
            _load(path)
