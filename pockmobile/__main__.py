"""`pockmobile COMMAND ...`: the commands under one name."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Final

from pockmobile.errors import UsageError

COMMANDS: Final = {
    "analyze": "find what to train under a budget of memory and time",
    "export": "turn a PyTorch model into a program that trains",
    "forecast": "tell what a program would need, without a weight in memory",
    "inspect": "show what a program is made of",
    "personalize": "train a program on a data file, on this computer",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"error: no command {name!r}: expected {', '.join(COMMANDS)}", file=sys.stderr)
        return UsageError.exit_status
    # Only the chosen command is imported, so that --help answers at once.
    run: Callable[[Sequence[str]], int] = importlib.import_module(f"pockmobile.{name}").main
    return run(arguments[1:])


def _usage() -> str:
    lines = [f"  {name:12} {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(
        ["usage: pockmobile COMMAND ...", "", *lines, "", "pockmobile COMMAND --help says more"]
    )


if __name__ == "__main__":
    sys.exit(main())
