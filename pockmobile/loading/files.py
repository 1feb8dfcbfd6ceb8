"""What a model or data file is, told by its content and not by its name."""

import zipfile
from enum import StrEnum
from pathlib import Path

from pockmobile.errors import ModelFileError


class FileKind(StrEnum):
    """The kinds of files that are recognised."""

    EXPORT_ARCHIVE = "a torch.export archive"
    OLD_EXPORT_ARCHIVE = "a torch.export archive of torch 2.7 or earlier"
    TORCHSCRIPT = "a TorchScript archive"
    TORCH_SAVE = "a file of torch.save"
    SAFETENSORS = "a safetensors file"
    NUMPY = "a NumPy archive (.npz)"
    PROGRAM = "an ExecuTorch program (.pte)"
    UNKNOWN = "no file of a known kind"


def kind_of(path: Path) -> FileKind:
    """Returns what `path` holds.

    Raises:
        ModelFileError: it is missing, a directory, empty, or unreadable.
    """
    head = _read_head(path)
    if head.startswith(b"PK"):
        return _zip_kind(path)
    # torch.save before 1.6 wrote plain pickles, protocol 2.
    if head.startswith(b"\x80\x02"):
        return FileKind.TORCH_SAVE
    # A safetensors file begins with the length of its header, which is JSON.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return FileKind.SAFETENSORS
    if head[4:6] == b"ET":
        return FileKind.PROGRAM
    return FileKind.UNKNOWN


def _read_head(path: Path) -> bytes:
    if path.is_dir():
        raise ModelFileError(f"{path} is a directory; give a file")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise ModelFileError(f"{path} is empty; save it again")
    return head


def _zip_kind(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ModelFileError(f"{path} is damaged ({error}); save it again") from error
    # PyTorch puts everything into one folder, named after the file.
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner:
        return FileKind.EXPORT_ARCHIVE
    if "serialized_exported_program.json" in inner.union(names):
        return FileKind.OLD_EXPORT_ARCHIVE
    if "constants.pkl" in inner:
        return FileKind.TORCHSCRIPT
    if "data.pkl" in inner:
        return FileKind.TORCH_SAVE
    if names and all(name.endswith(".npy") for name in names):
        return FileKind.NUMPY
    return FileKind.UNKNOWN
