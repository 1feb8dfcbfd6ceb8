"""Qualcomm's host libraries: where they are, and how they come into this process.

They compile for the Hexagon processor, and simulate it. ExecuTorch would download them at the
first lowering; nothing here ever does.
"""

import atexit
import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pockmobile.errors import MissingLibraryError

VARIABLE: Final = "QNN_SDK_ROOT"
_PACKAGE: Final = "onnxruntime_qnn"
_FOLDER: Final = Path("lib/x86_64-linux-clang")
_LIBRARIES: Final = ("libQnnHtp.so", "libQnnSystem.so")
"""In the order in which they are loaded."""

_REMEDY: Final = (
    f"run pip install 'pockmobile[qnn]' (Linux, x86-64), or set {VARIABLE} to a folder that "
    f"holds {_FOLDER}/{_LIBRARIES[0]}"
)
_PROBE: Final = "from pockmobile import qualcomm; qualcomm.start_manager()"

# A variable that is set, even to nothing, keeps ExecuTorch from its own download.
os.environ.setdefault(VARIABLE, "")


def missing() -> str | None:
    """Returns why the libraries cannot be found, in one line, or None if they are there."""
    try:
        _folder()
    except MissingLibraryError as error:
        return str(error)
    return None


@functools.cache
def load_libraries() -> None:
    """Loads the libraries into this process, once, after trying them in another.

    Raises:
        MissingLibraryError: they are not there, or do not work.
    """
    _lay_out(_folder())
    _check()
    _load()


def start_manager() -> None:
    """Loads the libraries and starts ExecuTorch's manager of them: what `load_libraries` tries.

    Raises:
        RuntimeError: the manager does not start.
    """
    _load()
    from executorch.backends.qualcomm.serialization.qc_schema import QcomChipset
    from executorch.backends.qualcomm.utils import utils
    from executorch.backends.qualcomm.utils.qnn_manager_lifecycle import QnnManagerContext

    backend = utils.generate_htp_compiler_spec(use_fp16=True)
    spec = utils.generate_qnn_executorch_compiler_spec(QcomChipset.SM8650, backend)
    with QnnManagerContext({"probe": spec}):
        pass


def _folder() -> Path:
    """Returns the folder of the libraries."""
    given = os.environ.get(VARIABLE, "")
    if given:
        folder = Path(given) / _FOLDER
        absent = [name for name in _LIBRARIES if not (folder / name).is_file()]
        if absent:
            raise MissingLibraryError(
                f"{VARIABLE} is {given!r}, where {_FOLDER / absent[0]} is missing; {_REMEDY}"
            )
        return folder
    spec = importlib.util.find_spec(_PACKAGE)
    found: Sequence[str] = (spec.submodule_search_locations or []) if spec else []
    for place in found:
        if all((Path(place) / name).is_file() for name in _LIBRARIES):
            return Path(place)
    raise MissingLibraryError(f"Qualcomm's libraries are missing; {_REMEDY}")


def _lay_out(libraries: Path) -> None:
    """Makes the variable point to a folder of an SDK's layout; builders read its release."""
    if os.environ.get(VARIABLE, ""):
        return
    root = Path(tempfile.mkdtemp(prefix="pockmobile-qnn-"))
    atexit.register(_remove, root, os.getpid())
    (root / _FOLDER).parent.mkdir(parents=True)
    # The folder itself: the libraries find others relative to where they really are.
    (root / _FOLDER).symlink_to(libraries, target_is_directory=True)
    os.environ[VARIABLE] = str(root)


def _remove(root: Path, owner: int) -> None:
    """Removes the folder at the end of the process that made it, not of one forked from it."""
    if os.getpid() == owner:
        shutil.rmtree(root, ignore_errors=True)


def _check() -> None:
    """Starts the manager in a process of its own: libraries that do not fit may crash it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    tried = subprocess.run(
        [sys.executable, "-c", _PROBE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        lines = (tried.stderr or tried.stdout).strip().splitlines()
        reason = lines[-1] if lines else "no message"
        raise MissingLibraryError(
            f"Qualcomm's libraries in {_folder().resolve()} do not work with this ExecuTorch "
            f"(exit status {tried.returncode}: {reason}); {_REMEDY}"
        )


def _load() -> None:
    import torch  # noqa: F401

    # Before the libraries, which crash it where they are loaded first.
    from executorch.extension.pybindings import portable_lib  # noqa: F401

    for name in _LIBRARIES:
        ctypes.CDLL(str(_folder() / name), os.RTLD_NOW | os.RTLD_LOCAL)
