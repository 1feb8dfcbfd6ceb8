"""Runs models x plans on the Hexagon simulator against eager PyTorch, and tells the worst.

Results are written as they come, so a run that was stopped goes on where it was:
    python scripts/parity_qnn.py -o parity_qnn.jsonl
The simulator is slow: images are small and rows are short.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pockmobile
from pockmobile.graph.rewrite import OPTIMIZER
from pockmobile.models.keyboard import keyboard_lm
from pockmobile.optim import SGD
from pockmobile.targets import Qnn
from scripts.benchmark.encoder import Encoder
from tests.eager import Eager
from tests.parity_cases import SUBJECTS, Subject, model_of, plan_of

LEAST_LIKENESS: Final = 0.99
MOST_LOSS_ERROR: Final = 0.02
PLANS: Final = ("sparse", "slices", "full")
_NO_GRADIENT: Final = 1e-5
"""The share of the largest gradient below which one is rounding alone (attention's keys)."""


def _tokens(num_tokens: int, *shape: int) -> Any:
    return lambda generator: torch.randint(num_tokens, shape, generator=generator)


_CASES: Final[Mapping[str, Subject]] = {
    **{name: SUBJECTS[name] for name in ("mlp", "llama")},
    "encoder": Subject(
        lambda: Encoder(
            num_labels=4, num_tokens=512, context=16, width=64, num_blocks=2, num_heads=4
        ),
        _tokens(512, 4, 16), (4,), 4,
        sliced=(("blocks.1.mlp.0.weight", 1, 8, 24), ("blocks.0.mlp.2.weight", 0, 0, 16)),
    ),
    "keyboard": Subject(
        lambda: keyboard_lm(pretrained=True), _tokens(10_000, 2, 16), (2, 16), 10_000,
        sliced=(("blocks.1.mlp.0.weight", 1, 8, 24), ("blocks.0.mlp.2.weight", 0, 0, 16)),
    ),
    "mobilenet_v2": SUBJECTS["mobilenet_v2"],
    "resnet18": SUBJECTS["resnet18"],
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One cell: what was delegated, how long that took, and how near to eager it trains.

    `num_of_optimizer` operators are outside because they are the optimizer's; `outside` names
    the others that are.
    """

    subject: str
    plan: str
    cpu_seconds_to_compile: float
    seconds_a_step: float
    num_bytes: int
    num_steps: int
    num_operators: int
    num_delegated: int
    num_of_optimizer: int
    outside: tuple[str, ...]
    least_likeness: float
    least_like: str
    loss_error: float


def main() -> int:
    """Runs what is missing; returns 1 if a cell is not near enough to eager."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="results, JSON lines")
    parser.add_argument("--steps", type=int, default=20, help="training steps (default: 20)")
    parser.add_argument("--subjects", nargs="+", default=list(_CASES), choices=list(_CASES))
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=PLANS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = _read(arguments.output)
    for plan in arguments.plans:
        for subject in arguments.subjects:
            if (subject, plan) not in done:
                result = _run(subject, plan, arguments.steps)
                done[subject, plan] = result
                with arguments.output.open("a", encoding="utf-8") as file:
                    print(json.dumps(asdict(result)), file=file, flush=True)
    for result in done.values():
        print(
            f"{result.subject:13}{result.plan:8}likeness {result.least_likeness:.5f}  "
            f"loss {100 * result.loss_error:.2f} %  compiled in "
            f"{result.cpu_seconds_to_compile:.0f} CPU s  a step {result.seconds_a_step:.1f} s  "
            f"{result.num_delegated} of {result.num_operators} operators, "
            f"{result.num_of_optimizer} of the optimizer's outside, {list(result.outside)}"
        )
    return 0 if all(map(_is_near, done.values())) else 1


def _is_near(result: Result) -> bool:
    return result.least_likeness >= LEAST_LIKENESS and result.loss_error <= MOST_LOSS_ERROR


def _run(name: str, plan: str, num_steps: int) -> Result:
    torch.manual_seed(0)
    subject, rule = _CASES[name], SGD()
    # With statistics that matter: float16 loses what shrinks from layer to layer.
    model = copy.deepcopy(model_of(name)) if name in SUBJECTS else subject.make().eval()
    generator = torch.Generator().manual_seed(2)
    batches = [subject.batch(generator) for _ in range(num_steps)]
    start = time.process_time()
    program = pockmobile.compile(
        model, batches[0][:1], batches[0][1:], plan=plan_of(subject, plan), target=Qnn()
    )
    compiled = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        program.save(Path(folder) / "model.pte")
        session = pockmobile.Session(Path(folder) / "model.pte")
    eager = Eager(model, program, rule)
    before = session.parameters
    start = time.perf_counter()
    print(f"{name} {plan}: compiled in {compiled:.0f} CPU s", flush=True)
    loss_error = 0.0
    for index, batch in enumerate(batches):
        losses = session.step(*batch, lr=subject.lr), eager.step(*batch, subject.lr)
        print(f"step {index}: loss {losses[0]:.5f}, eager {losses[1]:.5f}", flush=True)
        loss_error = max(loss_error, _loss_error(*losses))
    took = (time.perf_counter() - start) / num_steps
    changes = {
        entry.name: (
            session.parameters[entry.name] - before[entry.name],
            eager.leaves[entry.parameter].detach() - before[entry.name],
        )
        for entry in program.manifest.parameters
    }
    least_like, likeness = _least_like(changes)
    step = program.manifest.methods["train_step"]
    own = [item for item in step.outside if item.module == OPTIMIZER]
    return Result(
        name,
        plan,
        compiled,
        took,
        len(program.buffer),
        num_steps,
        step.num_operators,
        step.num_delegated,
        sum(item.count for item in own),
        tuple(f"{item.count} {item.operator}" for item in step.outside if item not in own),
        likeness,
        least_like,
        loss_error,
    )


def _loss_error(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / abs(theirs)


def _least_like(changes: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[str, float]:
    """Returns the parameter whose change points furthest from eager's, and its cosine."""
    largest = max(float(theirs.abs().max()) for _, theirs in changes.values())
    likeness = {
        name: float(cosine_similarity(ours.flatten(), theirs.flatten(), dim=0, eps=1e-30))
        for name, (ours, theirs) in changes.items()
        if float(theirs.abs().max()) > _NO_GRADIENT * largest
    }
    worst = min(likeness, key=lambda name: likeness[name])
    return worst, likeness[worst]


def _read(path: Path) -> dict[tuple[str, str], Result]:
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    results = [Result(**{**record, "outside": tuple(record["outside"])}) for record in records]
    return {(result.subject, result.plan): result for result in results}


if __name__ == "__main__":
    sys.exit(main())
