"""Writes docs/coverage.md: every layer and loss of the table, trained on every target.

Or, with `--models`, docs/models.md: every family of models, with each kind of plan. Results are
kept as they come, so a run that was stopped goes on where it was; with `--as-it-is` it runs
nothing, and the document says what is missing:
    python scripts/coverage.py --cache build/coverage.jsonl --jobs 2
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pockmobile.errors import UnsupportedOperatorError
from tests.families import FAMILIES as MODELS
from tests.families import PLANS, family_subject
from tests.layer_cases import (
    NUM_STEPS,
    TOLERANCE,
    Subject,
    layer_subject,
    loss_subject,
    train,
)
from tests.layers import FAMILIES, REFUSED
from tests.losses import LOSSES
from tests.parity_cases import TARGETS

_ROOT: Final = Path(__file__).resolve().parent.parent
_DOCUMENTS: Final = _ROOT / "docs"
_LINE: Final = re.compile(r", [^ ,]*layers\.py:\d+")
_LOSSES: Final = "losses"
_REFUSED: Final = "refused"
_SECTIONS: Final[Mapping[str, Iterable[str]]] = {
    **FAMILIES,
    _LOSSES: LOSSES,
    _REFUSED: REFUSED,
}
_INTRODUCTION: Final = f"""# What trains

Made by `scripts/coverage.py`; do not edit. Each layer stands between two linear
layers, and all are trained by SGD at random weights on fresh batches. After each of
{NUM_STEPS} steps the updates so far, the losses, and at the end a prediction, are
compared with eager PyTorch's: the error is the largest difference relative to the
largest update of that tensor, and at most {TOLERANCE:g} where a layer *trains*.
Delegated is the share of a step's operators that touch numbers with a point; four of
those outside are the loss's and the optimizer's, whatever the layer: ones for labels,
the learning rate and the loss itself. What the layer itself leaves outside is named."""
_OF_MODELS: Final = f"""# Families of models

Made by `scripts/coverage.py --models`; do not edit. The models of `transformers`, small (two
blocks, 16 numbers wide, but for MobileNetV2 and MobileViT) and at random weights, are trained
with each kind of plan by SGD on fresh batches. After each of {NUM_STEPS} steps the updates so
far, the losses, and at the end a prediction, are compared with eager PyTorch's: the error is
the largest difference relative to the largest update of that tensor (beyond the last digit of
the parameter itself), and at most {TOLERANCE:g} where a family *trains*. Delegated is the share
of a step's operators that touch numbers with a point. Four or five of those outside are the
loss's and the optimizer's: ones for labels, the learning rate and the loss itself. What the
model itself leaves outside is named."""


@dataclass(frozen=True)
class Row:
    """A layer or loss on a target: what training it came to, or why it is refused."""

    family: str
    name: str
    target: str
    error: float = 0.0
    share_delegated: float = 0.0
    num_partitions: int = 0
    planned_bytes: int = 0
    outside: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def trains(self) -> bool:
        """Whether it follows eager PyTorch."""
        return not self.refusal and self.error <= TOLERANCE


def main() -> int:
    """Runs what is missing and writes the document; 1 if anything trains as it should not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="results, JSON lines")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--models", action="store_true", help="families instead of layers")
    parser.add_argument("--as-it-is", action="store_true", help="run nothing that is missing")
    arguments = parser.parse_args()
    rows = _read(arguments.cache)
    wanted = _of_models() if arguments.models else _of_layers()
    if not arguments.as_it_is:
        _run_missing(wanted, rows, arguments.cache, arguments.jobs)
    found = [rows[key] for key in wanted if key in rows]
    missing = [key for key in wanted if key not in rows]
    document = _DOCUMENTS / ("models.md" if arguments.models else "coverage.md")
    introduction = _OF_MODELS if arguments.models else _INTRODUCTION
    document.write_text(render(introduction, found, missing), encoding="utf-8")
    wrong = [row for row in found if row.trains == (row.family == _REFUSED)]
    for row in wrong:
        print(f"{row.name} on {row.target}: {row.refusal or f'error {row.error:.1e}'}")
    return 1 if wrong else 0


_Key = tuple[str, str, str]
"""A family of layers or a plan, a layer or a model, and a target."""


def _run_missing(wanted: list[_Key], rows: dict[_Key, Row], cache: Path, jobs: int) -> None:
    """Runs what has no row yet, and keeps each row as it comes."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with (
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
        cache.open("a", encoding="utf-8") as file,
    ):
        futures = {pool.submit(_run, *key): key for key in wanted if key not in rows}
        for future in tqdm(as_completed(futures), total=len(futures), disable=None):
            rows[futures[future]] = future.result()
            print(json.dumps(asdict(future.result())), file=file, flush=True)


def _of_layers() -> list[_Key]:
    return [
        (family, name, target)
        for family, names in _SECTIONS.items()
        for name in names
        for target in TARGETS
    ]


def _of_models() -> list[_Key]:
    return [(plan, name, target) for plan in PLANS for name in MODELS for target in TARGETS]


def render(introduction: str, rows: Iterable[Row], missing: Iterable[_Key] = ()) -> str:
    """Returns the document; what was not run is listed at its end."""
    rows = list(rows)
    lines = [introduction]
    for family in dict.fromkeys(row.family for row in rows):
        title = f"`{family}`" if family in PLANS else family.capitalize()
        lines += ["", f"## {title}", ""]
        of_family = [row for row in rows if row.family == family]
        lines += _refusals(of_family) if family == _REFUSED else _table(of_family)
    left = [f"- {name} on {target}, `{family}`" for family, name, target in missing]
    if left:
        lines += ["", "## Not run", "", *left]
    return "\n".join(lines) + "\n"


def _table(rows: list[Row]) -> list[str]:
    lines = [
        "| | target | trains | error | delegated | partitions | planned | outside |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.name, row.target, "yes" if row.trains else "**no**"]
        cells += [row.refusal] if row.refusal else _figures(row)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _figures(row: Row) -> list[str]:
    planned = f"{row.planned_bytes / 1000:.1f} kB"
    if row.target == "portable":
        return [f"{row.error:.0e}", "", "", planned, ""]
    outside = ", ".join(name.removeprefix("aten.") for name in row.outside)
    delegated = f"{100 * row.share_delegated:.0f} %"
    return [f"{row.error:.0e}", delegated, str(row.num_partitions), planned, outside]


def _refusals(rows: list[Row]) -> list[str]:
    # The line is that of the table: it says nothing to readers.
    messages = {row.name: _LINE.sub("", row.refusal) for row in rows}
    return [f"- {name}: {message}" for name, message in messages.items()]


def _run(family: str, name: str, target: str) -> Row:
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            outcome = train(_subject(family, name), target, Path(folder))
    except UnsupportedOperatorError as error:
        return Row(family, name, target, refusal=str(error))
    return Row(family, name, target, **asdict(outcome))


def _subject(family: str, name: str) -> Subject:
    if family in PLANS:
        return family_subject(name, family)
    return loss_subject(name) if family == _LOSSES else layer_subject(name)


def _read(path: Path) -> dict[_Key, Row]:
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        (record["family"], record["name"], record["target"]): Row(
            **{**record, "outside": tuple(record["outside"])}
        )
        for record in records
    }


if __name__ == "__main__":
    sys.exit(main())
