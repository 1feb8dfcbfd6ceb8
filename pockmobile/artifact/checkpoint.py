"""Checkpoints: safetensors files that hold the state of a session, sealed by a SHA-256."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
import torch

from pockmobile.artifact.files import atomic_write
from pockmobile.artifact.manifest import StateEntry
from pockmobile.errors import CheckpointError

FORMAT: Final = "1"

_FORMAT_KEY: Final = "pockmobile_checkpoint"
_DIGEST_KEY: Final = "sha256"
_RESERVED: Final = (_FORMAT_KEY, "program_sha256", "num_steps", _DIGEST_KEY)


@dataclass(frozen=True)
class Checkpoint:
    """State tensors by name (in the program's order), steps done, and the host's metadata."""

    tensors: Mapping[str, torch.Tensor]
    num_steps: int
    metadata: Mapping[str, str]


def save_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    *,
    program_sha256: str,
    num_steps: int,
    metadata: Mapping[str, str],
) -> None:
    """Writes a checkpoint, all or nothing; it is on the disk when this returns.

    Raises:
        CheckpointError: the file cannot be written (a former one is as it was), or `metadata`
            is not of strings or uses a reserved key.
    """
    header = {
        **_check_metadata(metadata),
        _FORMAT_KEY: FORMAT,
        "program_sha256": program_sha256,
        "num_steps": str(num_steps),
    }
    dense = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    header[_DIGEST_KEY] = _digest(header, dense)
    data = safetensors.torch.save(dense, header)
    try:
        atomic_write(path, data)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {_reason(error)}") from error


def load_checkpoint(
    path: str | os.PathLike[str], *, program_sha256: str, state: Sequence[StateEntry]
) -> Checkpoint:
    """Reads a checkpoint of the program `program_sha256`, whose state is `state`.

    Nothing in the file is executed.

    Raises:
        CheckpointError: the file cannot be read, is no checkpoint, is damaged, belongs to
            another program, or holds tensors of other names, shapes or dtypes.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {_reason(error)}") from error
    header, tensors = _parse(path, data)
    _check_digest(path, header, tensors)
    if header["program_sha256"] != program_sha256:
        raise CheckpointError(
            f"{path} belongs to program {header['program_sha256'][:12]}..., this one is "
            f"{program_sha256[:12]}...; restore it with the .pte that it was saved from"
        )
    _check_state(path, tensors, state)
    return Checkpoint(
        tensors={entry.name: tensors[entry.name] for entry in state},
        num_steps=int(header["num_steps"]),
        metadata={key: value for key, value in header.items() if key not in _RESERVED},
    )


def _check_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in metadata.items():
        if key in _RESERVED:
            raise CheckpointError(
                f"the metadata key {key!r} is reserved ({', '.join(_RESERVED)}); choose another"
            )
        if not isinstance(key, str) or not isinstance(value, str):
            raise CheckpointError(
                f"the metadata {key!r}: {value!r} is not of strings; write them as strings"
            )
    return metadata


def _parse(
    path: str | os.PathLike[str], data: bytes
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is cut short, damaged, or not a safetensors file ({error}); "
            "restore another checkpoint"
        ) from error
    # safetensors gives metadata only for files that it opens itself; it has just checked this.
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    if header.get(_FORMAT_KEY) != FORMAT or any(key not in header for key in _RESERVED):
        raise CheckpointError(
            f"{path} is a safetensors file but not a checkpoint of format {FORMAT}; "
            "give a file that Session.save wrote"
        )
    return header, tensors


def _check_digest(
    path: str | os.PathLike[str], header: Mapping[str, str], tensors: Mapping[str, torch.Tensor]
) -> None:
    if _digest(header, tensors) != header[_DIGEST_KEY]:
        raise CheckpointError(
            f"{path} is damaged: its contents do not match their SHA-256; "
            "restore another checkpoint"
        )


def _check_state(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    state: Sequence[StateEntry],
) -> None:
    names = {entry.name for entry in state}
    if names != tensors.keys():
        missing, extra = sorted(names - tensors.keys()), sorted(tensors.keys() - names)
        raise CheckpointError(
            f"{path} holds other tensors than the program's state: missing {missing[:3]}, "
            f"unexpected {extra[:3]}"
        )
    for entry in state:
        tensor = tensors[entry.name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tuple(tensor.shape) != entry.shape or dtype != entry.dtype:
            raise CheckpointError(
                f"{path} holds {entry.name} as {dtype} {list(tensor.shape)}, the program "
                f"expects {entry.dtype} {list(entry.shape)}"
            )


def _digest(header: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns the SHA-256 of the metadata and the tensors, each sorted by UTF-8 name.

    An entry is its name, a zero byte, its value or its tensor's bytes, and a zero byte. Kept
    this simple because Kotlin and Swift compute it too.
    """
    digest = hashlib.sha256()
    for key in sorted(header.keys() - {_DIGEST_KEY}, key=str.encode):
        digest.update(f"{key}\0{header[key]}\0".encode())
    for name in sorted(tensors, key=str.encode):
        digest.update(f"{name}\0".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
        digest.update(b"\0")
    return digest.hexdigest()


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
