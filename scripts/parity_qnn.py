"""Runs models x plans on the Hexagon simulator against eager PyTorch, and tells the worst.

Results are written as they come, so a run that was stopped goes on where it was:
    python scripts/parity_qnn.py -o parity_qnn.jsonl
The simulator is slow: images are small and rows are short.

A parameter's change is that of its float32 weights, and once more the sum, in float64, of what
the steps subtracted from it. Where a step subtracts less than half a unit of a weight's last
place, float32 weights do not move at all, in eager PyTorch as here; only the sums tell then
whether the gradients are alike. Each step is therefore taken twice: at a rate so large that the
weight's own rounding does not count, from which the gradient is read, and at the real one.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
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
from pockmobile.targets.qnn.target import PRECISIONS
from scripts.benchmark.encoder import Encoder
from tests.eager import Eager
from tests.parity_cases import SUBJECTS, Subject, model_of, plan_of

LEAST_LIKENESS: Final = 0.99
MOST_LOSS_ERROR: Final = 0.02
PLANS: Final = ("sparse", "slices", "full")
_NO_GRADIENT: Final = 1e-5
"""The share of the largest gradient below which one is rounding alone (attention's keys)."""
_NUM_OF_CALIBRATION: Final = 8
_LARGE_RATE: Final = 2.0**20
"""So large that what a step subtracts exceeds a weight, or its rounding counts for nothing."""


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
    the others that are. `least_likeness` is the least cosine of a parameter's summed gradients
    with eager's, `likeness_of_weights` that of the change of its float32 weights; and
    `likeness_in_eager` is that of eager's own weights with eager's own sums.
    """

    subject: str
    plan: str
    precision: str
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
    likeness_of_weights: float
    likeness_in_eager: float
    loss_error: float


def main() -> int:
    """Runs what is missing; returns 1 if a cell is not near enough to eager."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="results, JSON lines")
    parser.add_argument("--steps", type=int, default=20, help="training steps (default: 20)")
    parser.add_argument("--subjects", nargs="+", default=list(_CASES), choices=list(_CASES))
    parser.add_argument("--precision", default="fp16", choices=PRECISIONS)
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=PLANS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = _read(arguments.output)
    for plan in arguments.plans:
        for subject in arguments.subjects:
            key = subject, plan, arguments.precision
            if key not in done:
                result = done[key] = _run(*key, arguments.steps)
                with arguments.output.open("a", encoding="utf-8") as file:
                    print(json.dumps(asdict(result)), file=file, flush=True)
    for result in done.values():
        print(
            f"{result.subject:13}{result.plan:8}{result.precision:6}"
            f"likeness {result.least_likeness:.5f} "
            f"(of weights {result.likeness_of_weights:.5f}, "
            f"in eager {result.likeness_in_eager:.5f})  "
            f"loss {100 * result.loss_error:.2f} %  compiled in "
            f"{result.cpu_seconds_to_compile:.0f} CPU s  a step {result.seconds_a_step:.1f} s  "
            f"{result.num_delegated} of {result.num_operators} operators, "
            f"{result.num_of_optimizer} of the optimizer's outside, {list(result.outside)}"
        )
    return 0 if all(map(_is_near, done.values())) else 1


def _is_near(result: Result) -> bool:
    return result.least_likeness >= LEAST_LIKENESS and result.loss_error <= MOST_LOSS_ERROR


def _run(name: str, plan: str, precision: str, num_steps: int) -> Result:
    torch.manual_seed(0)
    subject, rule = _CASES[name], SGD()
    # With statistics that matter: float16 loses what shrinks from layer to layer.
    model = copy.deepcopy(model_of(name)) if name in SUBJECTS else subject.make().eval()
    generator = torch.Generator().manual_seed(2)
    batches = [subject.batch(generator) for _ in range(num_steps)]
    start = time.process_time()
    program = pockmobile.compile(
        model,
        batches[0][:1],
        batches[0][1:],
        plan=plan_of(subject, plan),
        target=_target(subject, precision),
    )
    compiled = time.process_time() - start
    print(f"{name} {plan}: compiled in {compiled:.0f} CPU s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        eager = Eager(model, program, rule)
        trained = _train(program, eager, batches, subject.lr, Path(folder))
    least_like, likeness = _least_like(trained.sums, trained.sums_in_eager)
    step = program.manifest.methods["train_step"]
    own = [item for item in step.outside if item.module == OPTIMIZER]
    return Result(
        name,
        plan,
        precision,
        compiled,
        trained.seconds_a_step,
        len(program.buffer),
        num_steps,
        step.num_operators,
        step.num_delegated,
        sum(item.count for item in own),
        tuple(f"{item.count} {item.operator}" for item in step.outside if item not in own),
        likeness,
        least_like,
        _least_like(trained.changes, trained.changes_in_eager)[1],
        _least_like(trained.changes_in_eager, trained.sums_in_eager)[1],
        trained.loss_error,
    )


def _target(subject: Subject, precision: str) -> Qnn:
    """Returns the target, calibrated with batches that are trained on later no more."""
    if precision == "fp16":
        return Qnn()
    generator = torch.Generator().manual_seed(3)
    batches = [subject.batch(generator) for _ in range(_NUM_OF_CALIBRATION)]
    return Qnn(precision=precision, calibration=batches, calibration_lr=subject.lr)


@dataclass(frozen=True)
class _Trained:
    """What the steps did to each parameter, by its name in the program."""

    changes: Mapping[str, Tensor]
    changes_in_eager: Mapping[str, Tensor]
    sums: Mapping[str, Tensor]
    sums_in_eager: Mapping[str, Tensor]
    seconds_a_step: float
    loss_error: float


def _train(
    program: pockmobile.Program,
    eager: Eager,
    batches: Sequence[tuple[Tensor, Tensor]],
    lr: float,
    folder: Path,
) -> _Trained:
    program.save(folder / "model.pte")
    session = pockmobile.Session(folder / "model.pte")
    leaves = {e.name: eager.leaves[e.parameter] for e in program.manifest.parameters}
    before = session.parameters
    sums = {name: torch.zeros_like(x, dtype=torch.float64) for name, x in before.items()}
    sums_in_eager = copy.deepcopy(sums)
    loss_error, seconds = 0.0, 0.0
    for index, (inputs, labels) in enumerate(batches):
        for name, gradient in _gradients(session, inputs, labels, folder).items():
            sums[name] -= lr * gradient
        start = time.perf_counter()
        ours = session.step(inputs, labels, lr=lr)
        seconds += time.perf_counter() - start
        theirs = eager.step(inputs, labels, lr)
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            sums_in_eager[name] -= lr * leaf.grad.double()
        print(f"step {index}: loss {ours:.5f}, eager {theirs:.5f}", flush=True)
        loss_error = max(loss_error, abs(ours - theirs) / abs(theirs))
    after = session.parameters
    return _Trained(
        {name: after[name] - before[name] for name in before},
        {name: leaves[name].detach() - before[name] for name in before},
        sums,
        sums_in_eager,
        seconds / len(batches),
        loss_error,
    )


def _gradients(
    session: pockmobile.Session, inputs: Tensor, labels: Tensor, folder: Path
) -> dict[str, Tensor]:
    """Returns the gradients of plain SGD, in float64; leaves the session as it was."""
    before = session.parameters
    session.save(folder / "before.safetensors")
    session.step(inputs, labels, lr=_LARGE_RATE)
    after = session.parameters
    session.restore(folder / "before.safetensors")
    return {
        name: (before[name].double() - after[name].double()) / _LARGE_RATE for name in before
    }


def _least_like(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[str, float]:
    """Returns the parameter that points furthest from the other's, and its cosine."""
    sizes = {name: float(value.abs().max()) for name, value in theirs.items()}
    least = _NO_GRADIENT * max(sizes.values())
    likeness = {
        name: _cosine(ours[name], theirs[name]) for name, size in sizes.items() if size > least
    }
    worst = min(likeness, key=lambda name: likeness[name])
    return worst, likeness[worst]


def _cosine(left: Tensor, right: Tensor) -> float:
    pair = left.double().flatten(), right.double().flatten()
    return float(cosine_similarity(*pair, dim=0, eps=1e-30))


def _read(path: Path) -> dict[tuple[str, str, str], Result]:
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    results = [Result(**{**record, "outside": tuple(record["outside"])}) for record in records]
    return {(result.subject, result.plan, result.precision): result for result in results}


if __name__ == "__main__":
    sys.exit(main())
