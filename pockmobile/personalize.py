"""Command `python -m pockmobile.personalize model.pte --data FILE`: trains on this computer."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from pockmobile.artifact.program import check_program
from pockmobile.commands import Parser, positive_integer, positive_number, run, start_runtime
from pockmobile.errors import InputError, UsageError
from pockmobile.loading.files import kind_of

# torch takes seconds to import: arguments and files are checked before.
if TYPE_CHECKING:
    from torch import Tensor

    from pockmobile.session import EvaluationResult, Latents, Session

_DESCRIPTION: Final = """\
Train a program on a data file, as the phone would, and say what it learnt.

Data files are .safetensors, .npz or .pt with the inputs by name and `target`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run(lambda: _run(_parse(argv)))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="pockmobile personalize",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("program", metavar="PROGRAM", type=Path, help="a .pte that pockmobile exported")
    add("--data", metavar="FILE", type=Path, required=True, help="what it learns from")
    add(
        "--eval-data",
        metavar="FILE",
        type=Path,
        help="what measures it (default: --data)",
    )
    add("--lr", metavar="X", type=positive_number, default=0.01, help="(default: 0.01)")
    add("--epochs", metavar="N", type=positive_integer, default=1, help="(default: 1)")
    add(
        "--checkpoint",
        metavar="FILE",
        type=Path,
        help="resume from it if it exists, and save to it after each epoch",
    )
    add("--seed", metavar="N", type=int, default=0, help="of the shuffle (default: 0)")
    add("--threads", metavar="N", type=positive_integer, help="(default: the runtime's choice)")
    options = parser.parse_args(argv)
    _check_files(options)
    return options


def _check_files(options: argparse.Namespace) -> None:
    check_program(options.program)
    for path in (options.data, options.eval_data):
        if path is not None:
            kind_of(path)
    if options.checkpoint is not None and not options.checkpoint.parent.is_dir():
        raise UsageError(
            f"cannot write {options.checkpoint}: {options.checkpoint.parent} is no directory"
        )


def _run(options: argparse.Namespace) -> None:
    start_runtime()
    from pockmobile.session import Session

    session = Session(options.program, threads=options.threads)
    data = _read(session, options.data)
    eval_data = data if options.eval_data is None else _read(session, options.eval_data)
    if options.checkpoint is not None and options.checkpoint.exists():
        session.restore(options.checkpoint)
        print(f"resumed from {options.checkpoint} after {session.num_steps} steps")
    if session.manifest.is_split:
        data, eval_data = _encoded(session, data), _encoded(session, eval_data)
    print("before: ", _measure(session, eval_data))
    for epoch in range(options.epochs):
        loss = _train(session, data, lr=options.lr, seed=options.seed)
        print(f"epoch {epoch + 1}: mean loss {loss:.4f}")
        if options.checkpoint is not None:
            session.save(options.checkpoint)
    print("after:  ", _measure(session, eval_data))
    if options.checkpoint is not None:
        print(f"saved {options.checkpoint} after {session.num_steps} steps")


@final
@dataclass(frozen=True)
class _Data:
    """Inputs, or what a split program made of them, and targets: as many rows of each."""

    inputs: "list[Tensor] | Latents"
    targets: "list[Tensor]"

    def rows(self, numbers: "Tensor") -> "_Data":
        if isinstance(self.inputs, list):
            inputs: list[Tensor] | Latents = [value[numbers] for value in self.inputs]
        else:
            inputs = self.inputs.rows(numbers)
        return _Data(inputs, [value[numbers] for value in self.targets])


def _encoded(session: "Session", data: _Data) -> _Data:
    """Returns what training goes on from in each epoch."""
    assert isinstance(data.inputs, list)
    return replace(data, inputs=session.encode(data.inputs))


def _read(session: "Session", path: Path) -> _Data:
    """Returns the inputs and targets of a data file as the program takes them, checked."""
    from pockmobile.loading.examples import read_batch
    from pockmobile.session.batches import num_rows, prepare

    inputs = session.manifest.inputs
    targets = session.manifest.methods["train_step"].inputs_of("target")
    batch = read_batch(path)
    if batch.targets is None:
        raise InputError(f"{path} has no targets; add a tensor named `target`")
    names = (tensor.name for tensor in inputs)
    by_name = {**dict(zip(names, batch.args, strict=False)), **batch.kwargs}
    try:
        values = prepare(by_name if batch.kwargs else batch.args, inputs)
        values += prepare(batch.targets, targets)
        num_rows(values, inputs + targets)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    values = _whole_batches(session, path, values)
    return _Data(values[: len(inputs)], values[len(inputs) :])


def _whole_batches(session: "Session", path: Path, values: list["Tensor"]) -> list["Tensor"]:
    """Leaves out the last rows, where the loss has no label with which to fill up a batch."""
    targets = session.manifest.methods["train_step"].inputs_of("target")
    batch, rows = targets[0].shape[0], len(values[0])
    if rows % batch == 0 or all(target.ignored is not None for target in targets):
        return values
    if rows < batch:
        raise InputError(f"{path} has {rows} rows, the program trains on {batch} at a time")
    print(f"{path}: the last {rows % batch} of {rows} rows fill no batch and are left out")
    return [value[: rows - rows % batch] for value in values]


def _train(session: "Session", data: _Data, *, lr: float, seed: int) -> float:
    """Trains on each row once, shuffled; returns the mean loss of the steps."""
    import torch
    from tqdm import tqdm

    method = session.manifest.methods["train_step"]
    batch = method.inputs_of("target")[0].shape[0]
    # The steps done count too, so that no two epochs go through the rows in one order.
    generator = torch.Generator().manual_seed(seed + session.num_steps)
    order = torch.randperm(len(data.targets[0]), generator=generator)
    losses = []
    # None: shown on a terminal only.
    bar = tqdm(range(0, len(order), batch), unit="step", leave=False, disable=None)
    for start in bar:
        rows = data.rows(order[start : start + batch])
        losses.append(session.step(rows.inputs, rows.targets, lr))
        bar.set_postfix_str(f"loss {losses[-1]:.4f}", refresh=False)
    return sum(losses) / len(losses)


def _measure(session: "Session", data: _Data) -> str:
    result = session.evaluate(data.inputs, data.targets)
    return f"loss {result.loss:.4f}{_accuracy(result)}"


def _accuracy(result: "EvaluationResult") -> str:
    if "num_correct" not in result.metrics:
        return ""
    correct, counted = (int(result.metrics[name]) for name in ("num_correct", "num_counted"))
    return f", accuracy {100 * result.accuracy:.1f} % ({correct} of {counted})"


if __name__ == "__main__":
    sys.exit(main())
