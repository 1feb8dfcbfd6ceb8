"""The folder in which `scripts/bench.py` keeps what it exported, by what it was made from."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final, final

from scripts.benchmark.variants import Kind, ProgramInfo, VariantError

ROOT: Final = Path(__file__).resolve().parent.parent.parent
_SHARED: Final = (
    "pockmobile/models/*.py",
    "scripts/benchmark/works.py",
    "scripts/benchmark/inputs.py",
    "scripts/benchmark/export.py",
)
_SOURCES: Final = {
    "inputs": _SHARED,
    "ours": (*_SHARED, "pockmobile/**/*.py"),
    "split": (*_SHARED, "pockmobile/**/*.py"),
    "stock": (*_SHARED, "scripts/benchmark/stock_export.py"),
}
"""What each kind of file is made from: it is made again when one of these changes."""
_LIBRARIES: Final = ("torch", "executorch")
_MOST_CHARACTERS: Final = 200


@final
class Cache:
    """Files that are made once, each by a process of its own."""

    def __init__(self, folder: Path) -> None:
        """Keeps files in a folder, which is made if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder.resolve()

    @property
    def compiled(self) -> Path:
        """Where torch.compile keeps its own."""
        return self._folder / "inductor"

    @property
    def logs(self) -> Path:
        """Where processes leave what they say; made if it is missing."""
        path = self._folder / "logs"
        path.mkdir(exist_ok=True)
        return path

    def inputs(self, work: str, batch: int) -> Path:
        """Returns the file of a work's batch.

        Raises:
            VariantError: it cannot be made.
        """
        path = self._path("inputs", f"{work}-{batch}.safetensors")
        if not path.exists():
            self._make("inputs", work, batch, path)
        return path

    def program(
        self, kind: Kind, work: str, batch: int, detail: str
    ) -> tuple[Path, ProgramInfo]:
        """Returns a program and what it tells; `detail` is as in `export.Order`.

        Raises:
            VariantError: the export fails; the message is its last line.
        """
        path = self._path(kind, f"{work}-{batch}{_label(detail)}.pte")
        info = path.with_suffix(".json")
        if not info.exists():
            self._make(kind, work, batch, path, str(self.inputs(work, batch)), detail)
        return path, ProgramInfo(**json.loads(info.read_text(encoding="utf-8")))

    def _path(self, kind: str, name: str) -> Path:
        return self._folder / f"{kind}-{_fingerprint(kind)}-{name}"

    def _make(
        self, kind: str, work: str, batch: int, path: Path, inputs: str = "", detail: str = ""
    ) -> None:
        order = {
            "kind": kind,
            "work": work,
            "batch": batch,
            "path": str(path),
            "inputs": inputs,
            "detail": detail,
        }
        log = self.logs / f"{path.stem}.log"
        command = [sys.executable, "-m", "scripts.benchmark.export", json.dumps(order)]
        with log.open("wb") as file:
            found = subprocess.run(
                command, cwd=ROOT, env=environment(1), stdout=file, stderr=file, check=False
            )
        if found.returncode != 0:
            raise VariantError(f"the export fails: {reason(log, found.returncode)}")


def environment(threads: int) -> dict[str, str]:
    """Returns the variables of a process that works on so many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}


def reason(log: Path, status: int) -> str:
    """Returns why a process ended: by a signal, or the last line that it left, cut."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name} (memory?)"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:_MOST_CHARACTERS] if lines else f"exit status {status}"


def _label(detail: str) -> str:
    if detail.endswith(".json"):
        return f"-{hashlib.sha256(Path(detail).read_bytes()).hexdigest()[:8]}"
    return f"-{detail.replace(':', '-')}" if detail else ""


@cache
def _fingerprint(kind: str) -> str:
    """Returns what changes with the sources that make such a file, and with the libraries."""
    digest = hashlib.sha256(" ".join(map(version, _LIBRARIES)).encode())
    for path in sorted({path for glob in _SOURCES[kind] for path in ROOT.glob(glob)}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
