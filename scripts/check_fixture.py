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
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "inputs.safetensors")
    session = Session(folder / "model.pte")
    *inputs, target = (item["name"] for item in expected["inputs"])
    wrong = []
    print("step  loss      expected  seconds")
    for step, loss in enumerate(expected["losses"]):
        batch = {name: tensors[f"{step}.{name}"] for name in inputs}
        start = time.perf_counter()
        found = session.step(batch, tensors[f"{step}.{target}"], lr=expected["lr"])
        seconds = time.perf_counter() - start
        is_near = abs(found - loss) <= expected["tolerance"] * (1.0 + abs(loss))
        wrong += [] if is_near else [step]
        mark = "" if is_near else "  WRONG"
        print(f"{step:4}  {found:8.5f}  {loss:8.5f}  {seconds:.4f}{mark}")
    if wrong:
        raise PockmobileError(
            f"{len(wrong)} of {len(expected['losses'])} losses are further from eager "
            f"PyTorch's than {expected['tolerance']:g}, first at step {wrong[0]}"
        )
    print("all losses are as expected")


if __name__ == "__main__":
    sys.exit(main())
