"""Program files: an ExecuTorch `.pte` followed by a seal, its SHA-256, so that damage is found.

The runtime trusts what it loads: a single flipped bit can abort the process. It also ignores
what follows a program, so the seal costs it nothing and no second file is needed.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pockmobile.artifact.files import atomic_write
from pockmobile.errors import ArtifactError

SEAL_BYTES: Final = 84
"""Length of the seal: newline, `pockmobile sha256 `, 64 hexadecimal digits, newline."""

_SEAL: Final = re.compile(rb"\npockmobile sha256 ([0-9a-f]{64})\n")
_IDENTIFIER: Final = slice(4, 6)
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class ProgramFile:
    """A program file whose seal holds.

    `sha256` is that of the program without its seal: the last 65 bytes of the file say it.
    """

    path: Path
    sha256: str
    num_bytes: int


def program_sha256(program: bytes) -> str:
    """Returns the SHA-256 by which checkpoints know `program` (ExecuTorch's bytes)."""
    return hashlib.sha256(program).hexdigest()


def write_program(path: str | os.PathLike[str], program: bytes) -> ProgramFile:
    """Writes `program` (ExecuTorch's bytes) with its seal, all or nothing.

    Raises:
        ArtifactError: the file cannot be written; a former one is as it was.
    """
    sha256 = program_sha256(program)
    seal = f"\npockmobile sha256 {sha256}\n".encode()
    try:
        atomic_write(path, program, seal)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {_reason(error)}") from error
    return ProgramFile(Path(path), sha256, len(program) + len(seal))


def check_program(path: str | os.PathLike[str]) -> ProgramFile:
    """Reads a program file once and checks its seal.

    Raises:
        ArtifactError: the file cannot be read, is no ExecuTorch program, has no seal, or its
            bytes are not those that were sealed.
    """
    try:
        return _check(Path(path))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {_reason(error)}") from error


def _check(path: Path) -> ProgramFile:
    with path.open("rb") as file:
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, num_bytes - SEAL_BYTES))
        seal = _SEAL.fullmatch(file.read())
        file.seek(0)
        if file.read(8)[_IDENTIFIER] != b"ET":
            raise ArtifactError(
                f"{path} is not an ExecuTorch program ({num_bytes} bytes); "
                "give a .pte that pockmobile exported"
            )
        if seal is None:
            raise ArtifactError(
                f"{path} does not end with pockmobile's seal: it was cut short, or another "
                "tool wrote it; copy it again, or export it with pockmobile"
            )
        file.seek(0)
        digest = hashlib.sha256()
        for start in range(0, num_bytes - SEAL_BYTES, _CHUNK_BYTES):
            digest.update(file.read(min(_CHUNK_BYTES, num_bytes - SEAL_BYTES - start)))
    if digest.hexdigest() != seal[1].decode():
        raise ArtifactError(
            f"{path} is damaged: its SHA-256 is {digest.hexdigest()[:12]}..., sealed as "
            f"{seal[1].decode()[:12]}...; copy or export it again"
        )
    return ProgramFile(path, digest.hexdigest(), num_bytes)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
