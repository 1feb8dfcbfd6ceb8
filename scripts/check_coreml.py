"""Checks Core ML programs on this computer: models x plans x precisions against eager PyTorch.

Delegates are interpreted, so no Mac is needed. Results are written as they come, so a run that
was stopped goes on where it was:
    python scripts/check_coreml.py -o coreml.jsonl
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.coreml_cases import ALL_COREML, LIMITS, CoreMLCase, Outcome, check

_MOST_SECONDS = 120.0


def main() -> int:
    """Runs what is missing and prints the table; 1 if a case is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="results, JSON lines")
    parser.add_argument("--subjects", nargs="+", metavar="NAME", help="only these models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = _read(arguments.output)
    wanted = [c for c in ALL_COREML if c.subject in (arguments.subjects or [c.subject])]
    missing = [case for case in wanted if case not in done]
    with arguments.output.open("a", encoding="utf-8") as file:
        for case in tqdm(missing, disable=None):
            done[case] = check(case)
            print(json.dumps({**asdict(case), **asdict(done[case])}), file=file, flush=True)
    print("case                            lowered  partitions  outside  file      difference")
    for case in wanted:
        outcome = done[case]
        print(
            f"{case!s:32}{outcome.seconds:5.1f} s  {outcome.num_partitions:10}  "
            f"{outcome.num_outside:7}  {outcome.num_bytes / 1e6:5.2f} MB  "
            f"{outcome.difference:.1e}{'' if _is_right(case, outcome) else '  WRONG'}"
        )
    return 0 if all(_is_right(case, done[case]) for case in wanted) else 1


def _is_right(case: CoreMLCase, outcome: Outcome) -> bool:
    return (
        outcome.difference <= LIMITS[case.precision]
        and outcome.num_partitions == 1
        and outcome.num_outside == outcome.num_baked == 0
        and outcome.seconds <= _MOST_SECONDS
    )


def _read(path: Path) -> dict[CoreMLCase, Outcome]:
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        CoreMLCase(*(r[k] for k in CoreMLCase.__annotations__)): Outcome(
            *(r[k] for k in Outcome.__annotations__)
        )
        for r in records
    }


if __name__ == "__main__":
    sys.exit(main())
