"""Command `python -m pockmobile.inspect model.pte`: prints what a program is and trains."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pockmobile.artifact.program import check_program
from pockmobile.commands import Parser, run


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report, or the manifest's JSON; returns the exit status."""
    return run(lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pockmobile inspect",
        description="Say what a program is and trains.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "program", metavar="PROGRAM", type=Path, help="a .pte that pockmobile exported"
    )
    parser.add_argument("--json", action="store_true", help="print the raw manifest instead")
    return parser


def _run(options: argparse.Namespace) -> None:
    # Before the runtime, seconds to import, is needed to say that the file is bad.
    check_program(options.program)
    from pockmobile.artifact.report import render
    from pockmobile.session.program import LoadedProgram

    program = LoadedProgram(options.program)
    if options.json:
        print(program.manifest.to_json())
    else:
        print(render(program.manifest, program.num_bytes))


if __name__ == "__main__":
    sys.exit(main())
