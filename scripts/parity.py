"""Runs the whole product of parity: models x plans x optimizers x targets, and tells the worst.

Results are written as they come, so a run that was stopped goes on where it was:
    python scripts/parity.py -o parity.jsonl --jobs 2
"""

import argparse
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.parity_cases import ALL, SUBJECTS, TARGETS, Case, worst_excess


def main() -> int:
    """Runs what is missing and prints the table; 1 if parity fails anywhere."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="results, JSON lines")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    arguments = parser.parse_args()
    done = _read(arguments.output)
    missing = [case for case in ALL if case not in done]
    with (
        ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool,
        arguments.output.open("a", encoding="utf-8") as file,
    ):
        futures = {pool.submit(_run, case): case for case in missing}
        for future in tqdm(as_completed(futures), total=len(futures), disable=None):
            done[futures[future]] = future.result()
            record = {**asdict(futures[future]), "excess": future.result()}
            print(json.dumps(record), file=file, flush=True)
    print(f"{len(done)} cases; worst |difference| / (1e-5 + 1e-4 |eager|), parity is <= 1")
    for subject in SUBJECTS:
        worst = [_worst(done, subject, target) for target in TARGETS]
        cells = "  ".join(f"{t} {w:.3f}" for t, w in zip(TARGETS, worst, strict=True))
        print(f"{subject:14}{cells}")
    failed = [case for case, excess in done.items() if excess > 1.0]
    for case in failed:
        print(f"no parity: {case} {done[case]:.3f}")
    return 1 if failed else 0


def _run(case: Case) -> float:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return worst_excess(case, Path(folder))


def _worst(done: dict[Case, float], subject: str, target: str) -> float:
    cells = [e for c, e in done.items() if c.subject == subject and c.target == target]
    return max(cells, default=float("nan"))


def _read(path: Path) -> dict[Case, float]:
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {Case(*(r[k] for k in Case.__annotations__)): r["excess"] for r in records}


if __name__ == "__main__":
    sys.exit(main())
