"""Trains, evaluates and predicts with one exported program."""

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch

from pockmobile.artifact.checkpoint import load_checkpoint, save_checkpoint
from pockmobile.artifact.manifest import Manifest, Tensor
from pockmobile.errors import InputError, NonFiniteError
from pockmobile.session.batches import (
    Batch,
    all_finite,
    are_finite,
    counts,
    num_rows,
    pad,
    prepare,
)
from pockmobile.session.latents import Latents
from pockmobile.session.program import LoadedProgram, one_torch_thread, set_num_threads


@dataclass(frozen=True)
class EvaluationResult:
    """The mean loss over the labels that count, and the metrics summed over all rows."""

    loss: float
    metrics: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        """Share of the counted labels that were predicted, 0 to 1.

        Raises:
            InputError: the program's loss has no notion of a correct label.
        """
        if not {"num_correct", "num_counted"} <= self.metrics.keys():
            raise InputError(
                f"the program measures {', '.join(self.metrics) or 'no metrics'}: there is no "
                "accuracy; use the loss"
            )
        return self.metrics["num_correct"] / self.metrics["num_counted"]


@final
class Session:
    """A program and its state: what was learnt since the start or the checkpoint restored.

    Inputs and targets are a torch tensor or numpy array, a list or tuple of them in the order
    of the manifest, or a mapping by name; dimension 0 is the batch. int32 is taken for int64
    and float64 for float32, any other dtype must be the program's. A call that raises leaves
    the state as it was.

    A session is not safe to share between threads; make one for each, or lock. While one works,
    torch keeps to one thread.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        """Opens a program with its initial state.

        Args:
            path: a `.pte` that pockmobile exported.
            threads: threads of ExecuTorch's pool, which all sessions of the process share; by
                default as it is.

        Raises:
            ArtifactError: the file is missing, damaged, or not written by pockmobile.
            MissingLibraryError: the program needs Qualcomm's libraries, which are missing.
            UsageError: `threads` is not a positive whole number, or the program is for
                hardware that is not here.
        """
        self._program = LoadedProgram(path)
        self._program.check_backends()
        if threads is not None:
            set_num_threads(threads)
        # Asked for once: a step may take less than half a millisecond.
        self._taken = {
            name: (method.inputs_of("input"), method.inputs_of("target"))
            for name, method in self.manifest.methods.items()
        }
        self._state: list[torch.Tensor] = []
        self._num_steps = 0
        self.reset()

    @property
    def manifest(self) -> Manifest:
        """What the program computes and how it was made."""
        return self._program.manifest

    @property
    def program_sha256(self) -> str:
        """The SHA-256 by which checkpoints know the program."""
        return self._program.sha256

    @property
    def num_steps(self) -> int:
        """Training steps since the initial state, a restored checkpoint's included."""
        return self._num_steps

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """A copy of all state tensors by name: parameters, then optimizer state."""
        return {name: tensor.clone() for name, tensor in self._named_state().items()}

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """A copy of the trained parameters, or their trained slices, by name."""
        state = self._named_state()
        return {entry.name: state[entry.name].clone() for entry in self.manifest.parameters}

    @one_torch_thread()
    def encode(self, inputs: Batch) -> Latents:
        """Returns what comes before the first layer that learns, for any number of rows.

        `step` and `evaluate` take it in place of the inputs, in this epoch and in later ones.

        Raises:
            InputError: inputs are not what the program takes, or it was not split.
        """
        self._check_split()
        tensors = self.manifest.inputs
        values = prepare(inputs, tensors)
        rows = num_rows(values, tensors)
        batches = [self._program.run("encode", chunk) for chunk in _chunks(values, tensors)]
        names = [tensor.name for tensor in self.manifest.methods["encode"].outputs]
        columns = zip(*batches, strict=True)
        found = {n: torch.cat(parts)[:rows] for n, parts in zip(names, columns, strict=True)}
        return Latents(self.program_sha256, found)

    @one_torch_thread()
    def step(self, inputs: Batch | Latents, targets: Batch, lr: float) -> float:
        """Trains on one batch and returns its loss, measured before the update.

        Fewer rows than the program's batch are filled up with ignored ones.

        Args:
            inputs: up to the program's batch of rows; of a split program also their latents.
            targets: as many rows.
            lr: learning rate, finite, not negative.

        Raises:
            InputError: inputs, targets or `lr` are not what the program takes, or every label
                is an ignored one.
            NonFiniteError: the loss or a new state tensor is not finite.
        """
        rate = _learning_rate(lr)
        tensors, values = self._examples("train_step", inputs, targets)
        batch, rows = tensors[0].shape[0], len(values[0])
        if rows > batch:
            raise InputError(
                f"found {rows} rows, the program trains on at most {batch} a step; split them"
            )
        if not _any_counts(values, tensors):
            raise InputError("every label is an ignored one: there is nothing to learn")
        padded = [
            pad(value, tensor, batch) for value, tensor in zip(values, tensors, strict=True)
        ]
        loss, *state = self._program.borrow("train_step", [*self._state, *padded, rate])
        self._check_finite(loss, state)
        self._take(state)
        self._num_steps += 1
        return float(loss.item())

    @one_torch_thread()
    def predict(self, inputs: Batch) -> torch.Tensor | list[torch.Tensor]:
        """Returns the model's output, or a list of its outputs, for any number of rows.

        Raises:
            InputError: inputs are not what the program takes.
        """
        tensors, _ = self._taken["predict"]
        values = prepare(inputs, tensors)
        rows, batch = num_rows(values, tensors), tensors[0].shape[0]
        self._check_outputs(rows, batch)
        batches = [
            self._program.run("predict", [*self._parameters(), *chunk])
            for chunk in _chunks(values, tensors)
        ]
        outputs = batches[0]
        if rows != batch:
            outputs = [torch.cat(parts)[:rows] for parts in zip(*batches, strict=True)]
        return outputs[0] if len(outputs) == 1 else outputs

    @one_torch_thread()
    def evaluate(self, inputs: Batch | Latents, targets: Batch) -> EvaluationResult:
        """Returns the loss and the metrics over any number of rows; the state stays.

        Of a split program, inputs may be latents.

        Raises:
            InputError: inputs or targets are not what the program takes, or every label is an
                ignored one.
        """
        tensors, values = self._examples("evaluate", inputs, targets)
        total, weight = 0.0, 0.0
        metrics = dict.fromkeys(self.manifest.metrics, 0.0)
        for chunk in _chunks(values, tensors):
            if not _any_counts(chunk, tensors):
                continue
            loss, *sums = self._program.run("evaluate", [*self._parameters(), *chunk])
            found = {
                name: float(value.item()) for name, value in zip(metrics, sums, strict=True)
            }
            num_counted = found.get("num_counted", 1.0)
            total, weight = total + float(loss.item()) * num_counted, weight + num_counted
            metrics = {name: value + found[name] for name, value in metrics.items()}
        if weight == 0:
            raise InputError("every label is an ignored one: there is nothing to measure")
        return EvaluationResult(total / weight, metrics)

    def save(
        self, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Writes a checkpoint, all or nothing; `metadata` is the host's own.

        Raises:
            CheckpointError: the file cannot be written; a former one is as it was.
        """
        save_checkpoint(
            path,
            self._named_state(),
            program_sha256=self.program_sha256,
            num_steps=self.num_steps,
            metadata=metadata or {},
        )

    def restore(self, path: str | os.PathLike[str]) -> Mapping[str, str]:
        """Takes the state from a checkpoint of this program; returns the host's metadata.

        Raises:
            CheckpointError: the file cannot be read, is damaged, or belongs to another program.
        """
        checkpoint = load_checkpoint(
            path, program_sha256=self.program_sha256, state=self.manifest.state
        )
        self._take(list(checkpoint.tensors.values()))
        self._num_steps = checkpoint.num_steps
        return checkpoint.metadata

    def reset(self) -> None:
        """Forgets everything learnt: the state is again that of the export."""
        self._state = self._program.run("initial_state", ())
        self._num_steps = 0

    def _take(self, state: list[torch.Tensor]) -> None:
        """Copies a state in one call, so that no signal leaves it half taken."""
        torch._foreach_copy_(self._state, state)

    def _parameters(self) -> list[torch.Tensor]:
        return self._state[: len(self.manifest.parameters)]

    def _named_state(self) -> dict[str, torch.Tensor]:
        names = [entry.name for entry in self.manifest.state]
        return dict(zip(names, self._state, strict=True))

    def _examples(
        self, method: str, inputs: Batch | Latents, targets: Batch
    ) -> tuple[Sequence[Tensor], list[torch.Tensor]]:
        input_tensors, target_tensors = self._taken[method]
        values = prepare(self._trained_on(inputs), input_tensors)
        values += prepare(targets, target_tensors)
        tensors = input_tensors + target_tensors
        num_rows(values, tensors)
        return tensors, values

    def _check_split(self) -> None:
        if not self.manifest.is_split:
            raise InputError("the program was not split, it takes inputs; export with --split")

    def _trained_on(self, inputs: Batch | Latents) -> Batch:
        """Returns what `train_step` and `evaluate` take."""
        if not isinstance(inputs, Latents):
            return self.encode(inputs).values() if self.manifest.is_split else inputs
        self._check_split()
        if inputs.program_sha256 != self.program_sha256:
            raise InputError("the latents are of another program; encode the inputs again")
        return inputs.values()

    def _check_outputs(self, rows: int, batch: int) -> None:
        if rows == batch:
            return
        for output in self.manifest.methods["predict"].outputs:
            if output.shape[:1] != (batch,):
                raise InputError(
                    f"found {rows} rows, but output {output.name} has shape "
                    f"{list(output.shape)}, without a row for each; give exactly {batch}"
                )

    def _check_finite(self, loss: torch.Tensor, state: Sequence[torch.Tensor]) -> None:
        if are_finite([loss, *state]):
            return
        if not all_finite(loss):
            raise NonFiniteError(
                f"the loss of step {self.num_steps + 1} is {loss.item()}; the state is as "
                "before: lower the learning rate or check the inputs"
            )
        for entry, tensor in zip(self.manifest.state, state, strict=True):
            if not all_finite(tensor):
                raise NonFiniteError(
                    f"step {self.num_steps + 1} makes {entry.name} infinite or NaN; the state "
                    "is as before: lower the learning rate"
                )


def _learning_rate(lr: float) -> torch.Tensor:
    if isinstance(lr, bool) or not isinstance(lr, numbers.Real):
        raise InputError(f"lr is a {type(lr).__name__}, expected a number")
    rate = torch.tensor(float(lr), dtype=torch.float32)
    if not 0 <= rate.item() < math.inf:
        raise InputError(f"lr is {lr}, expected a finite number that is not negative")
    return rate


def _any_counts(values: Sequence[torch.Tensor], tensors: Sequence[Tensor]) -> bool:
    targets = [pair for pair in zip(values, tensors, strict=True) if pair[1].role == "target"]
    return not targets or any(counts(value, tensor) for value, tensor in targets)


def _chunks(
    values: Sequence[torch.Tensor], tensors: Sequence[Tensor]
) -> list[list[torch.Tensor]]:
    """Returns batches of the size that `tensors` say, the last one filled up."""
    batch = tensors[0].shape[0]
    return [
        [
            pad(value[start : start + batch], tensor, batch)
            for value, tensor in zip(values, tensors, strict=True)
        ]
        for start in range(0, len(values[0]), batch)
    ]
