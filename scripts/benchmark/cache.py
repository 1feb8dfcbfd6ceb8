"""The folder in which `scripts/bench.py` keeps what it exported, by what it was made from."""

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final, final

from scripts.benchmark.peers import REQUIREMENTS, Environments
from scripts.benchmark.variants import (
    Kind,
    Order,
    ProgramInfo,
    VariantError,
    last_line,
    to_line,
)

ROOT: Final = Path(__file__).resolve().parent.parent.parent
_SHARED: Final = (
    "pockmobile/models/*.py",
    "scripts/benchmark/works.py",
    "scripts/benchmark/inputs.py",
    "scripts/benchmark/export.py",
)
_OURS: Final = (*_SHARED, "pockmobile/**/*.py", "scripts/benchmark/our_export.py")
_NETWORK: Final = (
    *_SHARED,
    "pockmobile/capture/*.py",
    "pockmobile/plan.py",
    "scripts/benchmark/network.py",
)
_PEER: Final = (*_NETWORK, "scripts/peer_workers/*.py")
_SOURCES: Final = {
    "inputs": _SHARED,
    "ours": _OURS,
    "split": _OURS,
    "int8": _OURS,
    "int4": _OURS,
    "stock": (*_SHARED, "scripts/benchmark/stock_export.py"),
    "network": _NETWORK,
    **dict.fromkeys(REQUIREMENTS, _PEER),
}
"""What each kind of file is made from: it is made again when one of these changes."""
_QUIET: Final = {"TORCH_CPP_LOG_LEVEL": "ERROR", "TF_CPP_MIN_LOG_LEVEL": "2"}
_EXPORT: Final = "scripts.benchmark.export"
_LIBRARIES: Final = ("torch", "executorch")


@final
class Cache:
    """Files that are made once, each by a process of its own."""

    def __init__(self, folder: Path, environments: Environments) -> None:
        """Keeps files in a folder, which is made if it is missing.

        Args:
            folder: of the files.
            environments: in which peers run.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder.resolve()
        self._environments = environments

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
            self._make(Order("inputs", work, batch, str(path)))
        return path

    def python(self, engine: str) -> str:
        """Returns the interpreter of an engine's processes.

        Raises:
            VariantError: a peer's environment cannot be made.
        """
        return str(self._environments.python(engine)) if _is_peer(engine) else sys.executable

    def program(
        self, kind: Kind, work: str, batch: int, detail: str, without: str = ""
    ) -> tuple[Path, ProgramInfo]:
        """Returns a program and what it tells.

        Args:
            kind: of the program.
            work: the name of the work.
            batch: examples of a step.
            detail: as in `Order`, but of a peer the plan.
            without: as in `Order`.

        Raises:
            VariantError: the export fails; the message is its last line.
        """
        label = _label(detail) + (f"-without-{without}" if without else "")
        suffix = kind if kind == "network" or _is_peer(kind) else "pte"
        path = self._path(kind, f"{work}-{batch}{label}.{suffix}")
        info = path.with_suffix(".json")
        if not info.exists():
            if _is_peer(kind):
                detail = str(self.program("network", work, batch, detail)[0])
            inputs = str(self.inputs(work, batch))
            self._make(Order(kind, work, batch, str(path), inputs, detail, without))
        return path, ProgramInfo(**json.loads(info.read_text(encoding="utf-8")))

    def _path(self, kind: str, name: str) -> Path:
        return self._folder / f"{kind}-{_fingerprint(kind)}-{name}"

    def _make(self, order: Order) -> None:
        module = "scripts.peer_workers.build" if _is_peer(order.kind) else _EXPORT
        command = [self.python(order.kind), "-m", module, to_line(order)]
        log = self.logs / f"{Path(order.path).stem}.log"
        with log.open("wb") as file:
            found = subprocess.run(
                command, cwd=ROOT, env=environment(1), stdout=file, stderr=file, check=False
            )
        if found.returncode != 0:
            raise VariantError(f"the export fails: {last_line(log, found.returncode)}")


def environment(threads: int) -> dict[str, str]:
    """Returns the variables of a process that works on so many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), **_QUIET}


def _is_peer(kind: str) -> bool:
    return kind in REQUIREMENTS


def _label(detail: str) -> str:
    if detail.endswith(".json"):
        return f"-{hashlib.sha256(Path(detail).read_bytes()).hexdigest()[:8]}"
    return f"-{detail.replace(':', '-')}" if detail else ""


@cache
def _fingerprint(kind: str) -> str:
    """Returns what changes with the sources that make such a file, and with the libraries."""
    libraries = [*map(version, _LIBRARIES), *REQUIREMENTS.get(kind, ())]
    digest = hashlib.sha256(" ".join(libraries).encode())
    for path in sorted({path for glob in _SOURCES[kind] for path in ROOT.glob(glob)}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
