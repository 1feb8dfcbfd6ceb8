"""What a model shall learn, and under which budget: options, data, the analysis itself."""

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from pockmobile.commands import positive_integer, positive_number
from pockmobile.errors import UsageError
from pockmobile.loading.files import kind_of
from pockmobile.options.common import check_output, flag, loss_of, optimizer_of

# torch takes seconds to import: arguments are parsed before, and --help needs none of it.
if TYPE_CHECKING:
    from pockmobile.loading.models import LoadedModel
    from pockmobile.planner import Examples, Findings

DEFAULTS: Final = {"steps": 100, "repeats": 2, "jobs": 2, "seed": 0}
_OF_ANALYSIS: Final = (
    "data", "eval_data", "memory_budget", "step_budget", "lr", *DEFAULTS, "runs",
)  # fmt: skip
_UNITS: Final = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip


def add_task_options(group: Any, *, more_of_memory: str = "") -> None:
    """Adds the data and the budget; `more_of_memory` ends the help on its memory."""
    group.add_argument(
        "--data",
        metavar="FILE",
        type=Path,
        help=".safetensors, .npz or .pt with examples of what the model shall learn: inputs by "
        "position or by the names of forward()'s parameters, and `target` or `labels`",
    )
    group.add_argument(
        "--eval-data",
        metavar="FILE",
        type=Path,
        help="examples that measure it (default: a fifth of --data, held out)",
    )
    group.add_argument(
        "--memory-budget",
        metavar="SIZE",
        type=byte_size,
        help="the most memory of a training step beside frozen weights: 24MB, 1.5GiB"
        + more_of_memory,
    )
    group.add_argument(
        "--step-budget",
        metavar="X",
        type=positive_number,
        help="the most time of a training step, where training everything takes 1",
    )


def add_analysis_options(group: Any) -> None:
    """Adds how plans are compared."""
    group.add_argument(
        "--lr",
        metavar="X",
        type=positive_number,
        help="learning rate at the start; it falls to 0 (default: one for the optimizer)",
    )
    counts = {
        "steps": (positive_integer, "steps of each fine-tuning"),
        "repeats": (_several, "fine-tunings of each plan, at least 2"),
        "jobs": (positive_integer, "processes that fine-tune"),
        "seed": (int, "of the split and the search"),
    }
    for name, (read, meaning) in counts.items():
        text = f"{meaning} (default: {DEFAULTS[name]})"
        group.add_argument(flag(name), metavar="N", type=read, help=text)
    group.add_argument(
        "--runs",
        metavar="FILE",
        type=Path,
        help="keeps each fine-tuning, so that a killed analysis goes on from there (default: "
        "the plan as .runs.jsonl)",
    )


def _several(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected a whole number from 2, found {text!r}")
    return int(text)


def byte_size(text: str) -> int:
    """Reads a number of bytes like `24MB`, `512kB`, `1.5GiB` or `65536`, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    size = 0
    if match and match[2] in _UNITS:
        size = int(float(match[1]) * _UNITS[match[2]])
    if size < 1:
        raise argparse.ArgumentTypeError(
            f"expected a size like 24MB, 512kB, 1.5GiB or plain bytes, found {text!r}"
        )
    return size


def check_no_analysis(options: argparse.Namespace) -> None:
    """Checks that no option of an analysis was given, but for what else it may mean.

    Raises:
        UsageError: one was.
    """
    # Of a plan that is given, values are computed again to keep a memory budget.
    for name in (name for name in _OF_ANALYSIS if name != "memory_budget"):
        if getattr(options, name) is not None:
            raise UsageError(f"{flag(name)} belongs to --plan auto; add that, or leave it out")


def check_analysis(
    options: argparse.Namespace, plan: Path, outputs: Mapping[str, Path]
) -> None:
    """Checks the options of an analysis that writes `plan`, and fills in what is left out.

    Args:
        options: what was parsed.
        plan: the plan file.
        outputs: what else is written, by a name for messages.

    Raises:
        UsageError: one is missing, or a file cannot be read or written.
    """
    if options.data is None:
        raise UsageError("--data FILE is missing: examples of what the model shall learn")
    if options.memory_budget is None and options.step_budget is None:
        raise UsageError("the budget is missing: add --memory-budget, --step-budget or both")
    for path in filter(None, (options.data, options.eval_data)):
        kind_of(path)
    for name, default in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    options.runs = options.runs or plan.with_suffix(".runs.jsonl")
    check_output(options.runs, "--runs", {**inputs_of(options), "the plan": plan, **outputs})


def inputs_of(options: argparse.Namespace) -> dict[str, Path | None]:
    """Returns the files that are read, by a name for messages."""
    return {
        "the model": options.path,
        "the data": options.data,
        "the evaluation data": options.eval_data,
        "the calibration": getattr(options, "calibration", None),
    }


@final
@dataclass(frozen=True)
class TaskData:
    """What a model shall learn, what measures it, and the batch of a training step."""

    train: "Examples"
    evaluation: "Examples"
    batch_size: int

    @property
    def example(self) -> "Examples":
        """The first batch."""
        return self.train.first(self.batch_size)


def read_data(options: argparse.Namespace, loaded: "LoadedModel") -> TaskData:
    """Returns the data as the model takes them.

    Raises:
        UsageError: they do not fit the model, or are too few.
    """
    from pockmobile.loading.examples import own_batch_size

    batch_size = options.batch_size or own_batch_size(loaded)
    train = read_examples(options, options.data, loaded, batch_size)
    if options.eval_data is not None:
        evaluation = read_examples(options, options.eval_data, loaded, batch_size)
    else:
        train, evaluation = train.split(options.seed)
    if train.num_examples < batch_size:
        raise UsageError(
            f"{options.data} leaves {train.num_examples} examples to train on, a batch has "
            f"{batch_size}; give more, or a smaller --batch-size"
        )
    return TaskData(train, evaluation, batch_size)


def read_examples(
    options: argparse.Namespace, path: Path, loaded: "LoadedModel", batch_size: int
) -> "Examples":
    """Returns all examples of a file as the model takes them, with their targets.

    Raises:
        UsageError: they do not fit the model, or have no targets.
    """
    from torch import int64

    from pockmobile.loading.examples import all_examples
    from pockmobile.planner import Examples

    batch = all_examples(loaded, path, batch_size)
    targets = batch.targets
    if targets is None and options.loss == "next_token":
        # What follows a token is learnt from the tokens themselves.
        inputs = (*batch.args, *batch.kwargs.values())
        targets = tuple(value for value in inputs if value.dtype == int64)[:1]
    if not targets:
        raise UsageError(f"{path} has no targets; add a tensor named `target`")
    return Examples(batch.args, batch.kwargs, targets)


def find(
    options: argparse.Namespace,
    loaded: "LoadedModel",
    data: TaskData,
    progress: Callable[[str], None],
    *,
    quiet: bool,
) -> "Findings":
    """Analyses a model; `quiet` draws no bars.

    Raises:
        PlanError: nothing fits the budget.
        UsageError: model, loss and data do not fit each other.
    """
    from pockmobile.planner import Settings, analyze
    from pockmobile.search import Budget

    settings = Settings(
        optimizer=optimizer_of(options),
        clip_norm=options.clip_norm,
        target=options.target,
        lr=options.lr,
        num_steps=options.steps,
        num_repeats=options.repeats,
        num_processes=options.jobs,
        seed=options.seed,
        store=options.runs,
        shows_progress=not quiet,
        progress=progress,
    )
    budget = Budget(options.memory_budget, options.step_budget)
    return analyze(
        loaded.model, data.train, data.evaluation, data.batch_size, loss_of(options), budget,
        settings,
    )  # fmt: skip
