"""Command `python -m pockmobile.inspect model.pte`: prints what a program is and trains."""

import argparse
import sys
from collections.abc import Sequence

from pockmobile.artifact.program import check_program
from pockmobile.errors import PockmobileError


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report, or the manifest's JSON; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        output = _describe(options.program, as_json=options.json)
    except PockmobileError as error:
        print(f"pockmobile.inspect: {error}", file=sys.stderr)
        return error.exit_status
    print(output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pockmobile.inspect", description="Says what a program is and trains."
    )
    parser.add_argument(
        "program", metavar="model.pte", help="a program that pockmobile exported"
    )
    parser.add_argument("--json", action="store_true", help="print the raw manifest instead")
    return parser


def _describe(path: str, *, as_json: bool) -> str:
    check_program(
        path
    )  # before the runtime, seconds to import, is needed to say that it is bad
    from pockmobile.artifact.report import render
    from pockmobile.session.program import LoadedProgram

    program = LoadedProgram(path)
    if as_json:
        return program.manifest.to_json()
    return render(program.manifest, program.num_bytes)


if __name__ == "__main__":
    sys.exit(main())
