"""Files that hold tensors: torch.save, safetensors and NumPy archives; nothing is unpickled."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pockmobile.errors import ModelFileError

_NUM_SHOWN: Final = 3
_OBJECTS: Final = re.compile(r"GLOBAL|Can only|Trying to")


def read_torch_save(path: Path, *, remedy: str) -> Any:
    """Returns what `torch.save` wrote: tensors, and plain containers of them.

    Args:
        path: the file.
        remedy: what the user can do if the file holds Python objects.

    Raises:
        ModelFileError: it is damaged, or holds objects, which are never unpickled here.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch tells objects from damage in its text alone.
        if _OBJECTS.search(str(error)):
            raise ModelFileError(
                f"{path} holds pickled Python objects, and loading it runs code from the file: "
                f"{remedy}"
            ) from error
        raise damaged(path) from error
    # Truncated files end in RuntimeError, EOFError, ValueError and others.
    except Exception as error:
        raise damaged(path) from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file by name.

    Raises:
        ModelFileError: it is damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise damaged(path) from error


def read_numpy(path: Path) -> dict[str, Tensor]:
    """Returns the arrays of an `.npz` file by name; NumPy's default float64 becomes float32.

    Raises:
        ModelFileError: it is damaged, or holds objects or dtypes that torch does not have.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"{path} holds more than arrays of numbers ({error})") from error
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(path) from error
    return {
        name: tensor.float() if tensor.dtype == torch.float64 else tensor
        for name, tensor in tensors.items()
    }


def damaged(path: Path) -> ModelFileError:
    """Returns the error that says so."""
    return ModelFileError(f"{path} is damaged: it cannot be read to its end; save it again")


def listed(names: list[str]) -> str:
    """Returns the first few names and how many more there are, or `none`."""
    hidden = len(names) - _NUM_SHOWN
    return (", ".join(names[:_NUM_SHOWN]) or "none") + (
        f" and {hidden} more" if hidden > 0 else ""
    )
