"""What the command lines share: arguments, one-line errors, exit status, progress, quiet."""

import argparse
import io
import logging
import math
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, NoReturn, final

from pockmobile.errors import PockmobileError, PockmobileWarning, UsageError

_INTERRUPTED = 130
"""What shells return for a command that Ctrl-C ended."""


@final
class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all other errors."""

    def error(self, message: str) -> NoReturn:
        """Raises UsageError instead of printing the usage."""
        raise UsageError(f"{message} (see --help)")


def positive_integer(text: str) -> int:
    """Reads a whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def positive_number(text: str) -> float:
    """Reads a finite number above 0, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return number


def run(command: Callable[[], None]) -> int:
    """Runs a command and returns its exit status; our errors become one line on stderr.

    Anything else is a fault of ours and keeps its traceback.
    """
    try:
        with _quiet_libraries():
            command()
    except PockmobileError as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return _INTERRUPTED
    return 0


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keeps the remarks of torch, torchao and ExecuTorch away; what is wrong they raise.

    Our own warnings are shown; `python -W default` shows all.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", PockmobileWarning)
                warnings.showwarning = _show
            yield
    finally:
        logging.disable(disabled)


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    print("warning:", message, file=sys.stderr)


def start_runtime() -> None:
    """Starts ExecuTorch's threads, which tell stderr what they fail to learn of an x86 CPU."""
    from executorch.extension.pybindings import portable_lib

    # What the runtime has to say of a failure comes later, and is shown.
    with redirect_stderr(io.StringIO()):
        portable_lib._threadpool_get_thread_count()


def peak_memory() -> int:
    """Peak memory of this process in bytes; macOS counts in bytes, Linux in KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@final
class Progress:
    """Shows on stderr the stage at work, and the seconds that each stage before it took."""

    def __init__(self, *, quiet: bool) -> None:
        """Shows nothing if `quiet`, or if stderr is no terminal."""
        from tqdm import tqdm

        # This very stream, since what libraries write to stderr meanwhile goes nowhere.
        self._stream = sys.stderr
        # None: shown on a terminal only.
        disable = True if quiet else None
        self._bar = tqdm(bar_format="{desc}", leave=False, disable=disable, file=self._stream)
        self._stage = ""
        self._start = 0.0

    def __call__(self, stage: str) -> None:
        """Begins a stage, which ends the one before."""
        self._finish()
        self._stage, self._start = stage, time.perf_counter()
        self._bar.set_description_str(f"         {stage} ...")

    def __enter__(self) -> "Progress":
        """Does nothing."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends the last stage, unless it failed."""
        if kind is None:
            self._finish()
        self._bar.close()

    def _finish(self) -> None:
        if self._stage and not self._bar.disable:
            seconds = time.perf_counter() - self._start
            self._bar.write(f"{seconds:6.1f} s {self._stage}", file=self._stream)
