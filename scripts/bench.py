"""Compares a training step of ours with PyTorch's and stock ExecuTorch's: time and memory.

Each variant trains in a process of its own; they take turns, so that no two run at once:
    python scripts/bench.py mobilenet_v2-0.35-96 --batch 8 -o bench.json
Exits with 1 if a loss does not fall, or if one of ours or of eager PyTorch cannot be measured
or trains something else. What cannot be measured is told in a line below the table.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pockmobile.commands import run
from scripts.benchmark.command import MOST_WORKS, compare, parser_of
from scripts.benchmark.peers import DEFAULT_FOLDER, Environments
from scripts.benchmark.variants import COMMON, WITHOUT


def main() -> int:
    """Measures, prints and writes; returns the exit status."""
    return run(_main)


def _main() -> None:
    parser = parser_of(
        __doc__.splitlines()[0], works=MOST_WORKS, batches=[1, 8], variants=COMMON
    )
    parser.add_argument(
        "--passes", action="store_true", help="adds a row for each of our passes, left out"
    )
    arguments = parser.parse_args()
    variants = [*arguments.variants, *(WITHOUT if arguments.passes else ())]
    compare(arguments, Environments(DEFAULT_FOLDER), variants)


if __name__ == "__main__":
    sys.exit(main())
