"""A process that trains one variant of `scripts/bench.py` as it is told, line by line.

It reads a `Job`, answers when it is ready, and then answers each `Command` with `Steps`, or
with `Memory` at the end. It imports what its variant needs and no more, since that is the
baseline of its memory. A peer's runs under an interpreter that has no torch.
"""

import json
import os
import re
import resource
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Final, Protocol

from scripts.benchmark.variants import Command, Engine, Job, Memory, Steps, to_line

ENGINES: Final[dict[Engine, str]] = {
    "ours": "scripts.benchmark.ours",
    "eager": "scripts.benchmark.eager",
    "stock": "scripts.benchmark.stock",
    "onnxruntime": "scripts.peer_workers.onnxruntime",
    "mnn": "scripts.peer_workers.mnn",
    "litert": "scripts.peer_workers.litert",
}
"""The module of each engine: `load_late()` imports what its library imports at first use, and
`open_engine(job)` returns a `Trainer`."""

_STATUS: Final = Path("/proc/self/status")


class Trainer(Protocol):
    """What trains."""

    def step(self, lr: float) -> float:
        """Takes one step on the batch, and returns the loss before it."""


def main() -> None:
    """Serves until it is told to end, or its input ends."""
    replies = _own_stdout()
    job = Job(**json.loads(sys.stdin.readline()))
    module = import_module(ENGINES[job.engine])
    module.load_late()
    baseline = resident_bytes()
    forget_peak()
    trainer: Trainer = module.open_engine(job)
    _reply(replies, '"ready"\n')
    for line in sys.stdin:
        command = Command(**json.loads(line))
        if command.action == "end":
            _reply(replies, to_line(Memory(baseline, peak_bytes())))
            return
        _reply(replies, to_line(train(trainer, command.num_steps, command.lr)))


def train(trainer: Trainer, num_steps: int, lr: float) -> Steps:
    """Takes steps and times each."""
    seconds, losses = [], []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    for _ in range(num_steps):
        start = time.perf_counter()
        losses.append(trainer.step(lr))
        seconds.append(time.perf_counter() - start)
    user = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
    return Steps(seconds, user, losses)


def resident_bytes() -> int:
    """Returns the resident memory of this process (its peak so far, where that is unknown)."""
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """Returns the peak of the resident memory of this process, in bytes.

    Linux's `ru_maxrss` is at least that of the process which started this one.
    """
    peak = _status("VmHWM")
    if peak is not None:
        return peak
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def forget_peak() -> None:
    """Begins the peak anew, where the system can: imports may need more than training does."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(key: str) -> int | None:
    with suppress(OSError):
        found = re.search(rf"{key}:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"))
        if found:
            return 1024 * int(found[1])
    return None


def _own_stdout() -> IO[str]:
    """Returns the stream of replies; what libraries print goes to stderr from here on."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _reply(replies: IO[str], line: str) -> None:
    replies.write(line)
    replies.flush()


if __name__ == "__main__":
    main()
