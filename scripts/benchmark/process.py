"""The processes of `scripts/bench.py`, of which one at a time works."""

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self, final

from scripts.benchmark.cache import ROOT, Cache, environment
from scripts.benchmark.variants import (
    Command,
    Job,
    Memory,
    Steps,
    VariantError,
    last_line,
    to_line,
)

_PATIENCE: Final = 10.0
"""Seconds that a process has to end."""


@final
class Worker:
    """A process that trains one variant; leave the `with` block and it is gone."""

    def __init__(self, job: Job, cache: Cache, log: Path) -> None:
        """Starts it, and waits until it has opened the variant.

        Raises:
            VariantError: it has not; the message is the last line that it left.
        """
        self._log = log
        compiling = {
            "TORCHINDUCTOR_CACHE_DIR": str(cache.compiled),
            # No processes beside it: they would count in nobody's memory and time.
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [cache.python(job.engine), "-m", "scripts.benchmark.worker"],
                cwd=ROOT,
                env={**environment(job.threads), **compiling},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        try:
            self._ask(to_line(job))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Does nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process."""
        self.close()

    def step(self, num_steps: int, lr: float) -> Steps:
        """Trains.

        Raises:
            VariantError: the process ended.
        """
        return Steps(**self._ask(to_line(Command("step", num_steps, lr))))

    def memory(self) -> Memory:
        """Returns what memory it took; it trains no more.

        Raises:
            VariantError: the process ended.
        """
        return Memory(**self._ask(to_line(Command("end"))))

    def close(self) -> None:
        """Ends the process, at once if it does not by itself."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = self._process.wait()
            raise VariantError(f"the process ended: {last_line(self._log, status)}")
        return json.loads(answer)
