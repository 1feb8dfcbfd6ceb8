"""Compares a training step of ours with the peers that train on phones: time and memory.

LiteRT, MNN and ONNX Runtime train the same network, from the same weights, on the same batch,
each in an environment of its own, which is made once (2.7 GB, minutes):
    python scripts/bench_peers.py -o peers.json
Exits with 1 if a loss does not fall, or if one of ours or of eager PyTorch cannot be measured
or trains something else. What cannot be measured is told in a line below the table.
"""

import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pockmobile.commands import run
from scripts.benchmark.command import compare, parser_of
from scripts.benchmark.peers import DEFAULT_FOLDER, Environments
from scripts.benchmark.variants import BESIDE_PEERS

_WORKS: Final = ("mobilenet_v2-0.35-96", "keyboard_lm-32")


def main() -> int:
    """Measures, prints and writes; returns the exit status."""
    return run(_main)


def _main() -> None:
    parser = parser_of(
        __doc__.splitlines()[0], works=_WORKS, batches=[8], variants=BESIDE_PEERS
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="FOLDER",
        help=f"where the peers are installed (default: {DEFAULT_FOLDER})",
    )
    arguments = parser.parse_args()
    compare(arguments, Environments(arguments.environments), arguments.variants)


if __name__ == "__main__":
    sys.exit(main())
