"""What the command lines share: arguments, one-line errors, exit status, quiet libraries."""

import argparse
import io
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import NoReturn, final

from pockmobile.errors import PockmobileError, UsageError

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

    `python -W default` shows the warnings all the same.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def start_runtime() -> None:
    """Starts ExecuTorch's threads, which tell stderr what they fail to learn of an x86 CPU."""
    from executorch.extension.pybindings import portable_lib

    # What the runtime has to say of a failure comes later, and is shown.
    with redirect_stderr(io.StringIO()):
        portable_lib._threadpool_get_thread_count()
