"""Writing files so that a crash at any moment leaves the former file or the new one, whole."""

import os
import secrets
from pathlib import Path


def atomic_write(path: str | os.PathLike[str], *chunks: bytes) -> None:
    """Writes `chunks` one after the other as the file `path`, all or nothing.

    The bytes reach the disk in a temporary file of the same directory before the name is
    moved to them. An error removes that temporary file; a killed process may leave it
    (`.name.*.tmp`). A symbolic link is followed, not replaced.

    Raises:
        OSError: the file cannot be written; a former file of that name is as it was.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    # The rename itself lives in the directory: without this a power cut can undo it.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
