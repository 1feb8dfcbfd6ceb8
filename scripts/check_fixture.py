"""Trains on this machine by a folder of `device_fixture.py`, and compares the losses.

    python scripts/check_fixture.py fixture

It needs a runtime that has what the program is for: Core ML on a Mac, XNNPACK anywhere.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pockmobile.commands import run
from pockmobile.errors import PockmobileError
from pockmobile.session import Session


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    return run(lambda: check(parser.parse_args(argv).folder))


def check(folder: Path) -> None:
    """Trains and prints each loss beside the expected one.

    Raises:
        PockmobileError: one is further from it than is allowed.
    """
    fixture = json.loads((folder / "fixture.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "inputs.safetensors")
    session = Session(folder / fixture["program"])
    limit, wrong = fixture["loss_relative"], []
    print("step  loss      expected  seconds")
    for number, step in enumerate(fixture["steps"]):
        inputs, targets, lr = (tensors[name] for name in step["inputs"])
        start = time.perf_counter()
        found, expected = session.step(inputs, targets, lr=float(lr)), step["loss"]
        seconds = time.perf_counter() - start
        is_near = abs(found - expected) <= limit * abs(expected)
        wrong += [] if is_near else [number]
        mark = "" if is_near else "  WRONG"
        print(f"{number:4}  {found:8.5f}  {expected:8.5f}  {seconds:.4f}{mark}")
    if wrong:
        raise PockmobileError(
            f"{len(wrong)} of {len(fixture['steps'])} losses are further from eager PyTorch's "
            f"than {limit:g} of them, first at step {wrong[0]}"
        )
    print("all losses are as expected")


if __name__ == "__main__":
    sys.exit(main())
