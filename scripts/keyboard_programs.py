"""Makes the programs of the keyboard: the shipped model with the plan that the search found.

    python scripts/keyboard_programs.py -o programs

writes `keyboard.pte` (XNNPACK) and `keyboard-portable.pte` (the reference kernels).
"""

import argparse
import sys
from pathlib import Path
from typing import Final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pockmobile
from pockmobile.models import keyboard_lm

BATCH, CONTEXT = 4, 16
"""Rows and tokens of a training step: messages are short, and logits are its memory."""
PLAN: Final = Path(pockmobile.__file__).parent / "models" / "keyboard.plan.json"
_NAMES: Final = {"xnnpack": "keyboard.pte", "portable": "keyboard-portable.pte"}


def main() -> int:
    """Writes both programs, and prints what they need."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for target, name in _NAMES.items():
        program = keyboard_program(target)
        program.save(output / name)
        print(program.report())
    return 0


def keyboard_program(target: str = "xnnpack", plan: str = str(PLAN)) -> pockmobile.Program:
    """Returns the program of the shipped model under a plan: a preset or a file."""
    return pockmobile.compile(
        keyboard_lm(pretrained=True),
        (torch.zeros(BATCH, CONTEXT, dtype=torch.int64),),
        loss="next_token",
        plan=plan,
        target=target,
        optimizer=pockmobile.SGD(),
        clip_norm=1.0,
        predict_batch_size=1,
    )


if __name__ == "__main__":
    sys.exit(main())
