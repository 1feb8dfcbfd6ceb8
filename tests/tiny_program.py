"""A tiny training program made by hand with stock ExecuTorch, as the contract says.

A linear classifier of three classes over frozen features: two inputs, cross entropy with the
ignored label -100, plain gradient descent.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch
from torch import nn

from pockmobile.artifact.manifest import (
    Manifest,
    Method,
    Model,
    NumNodes,
    OutsideOperator,
    PassRecord,
    Plan,
    StateEntry,
    Tensor,
    Versions,
)
from pockmobile.artifact.program import ProgramFile, write_program
from pockmobile.plan import Slice

BATCH: Final = 4
PREDICT_BATCH: Final = 2
NUM_FEATURES: Final = 5
NUM_KINDS: Final = 6
NUM_CLASSES: Final = 3

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_generator = torch.Generator().manual_seed(7)
KIND_TABLE: Final = torch.randn(NUM_KINDS, NUM_FEATURES, generator=_generator)
WEIGHT: Final = torch.randn(NUM_CLASSES, NUM_FEATURES, generator=_generator)
BIAS: Final = torch.zeros(NUM_CLASSES)


def write_tiny_program(
    path: Path, replacements: Mapping[str, str] | None = None
) -> ProgramFile:
    """Writes the program; `replacements` change text of its manifest for one as long."""
    program = tiny_program()
    for old, new in (replacements or {}).items():
        assert old.encode() in program
        assert len(old) == len(new)
        program = program.replace(old.encode(), new.encode())
    return write_program(path, program)


def random_rows(num_rows: int, seed: int = 0) -> Rows:
    """Returns values, kinds and labels of that many rows."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(num_rows, NUM_FEATURES, generator=generator),
        torch.randint(NUM_KINDS, (num_rows,), generator=generator),
        torch.randint(NUM_CLASSES, (num_rows,), generator=generator),
    )


def features(values: torch.Tensor, kinds: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Returns what the frozen part of the model makes of its inputs, [rows, NUM_FEATURES]."""
    one_hot = (kinds.unsqueeze(1) == torch.arange(NUM_KINDS)).to(torch.float32)
    return values + one_hot @ table


class _Frozen(nn.Module):
    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", KIND_TABLE.clone())


class _TrainStep(_Frozen):
    def forward(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        values: torch.Tensor,
        kinds: torch.Tensor,
        labels: torch.Tensor,
        lr: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = features(values, kinds, self.table)
        logits = hidden @ weight.t() + bias
        one_hot, counted = _one_hot(labels)
        num_counted = counted.sum()
        loss = -(torch.log_softmax(logits, 1) * one_hot).sum() / num_counted
        grad = (torch.softmax(logits, 1) * counted.unsqueeze(1) - one_hot) / num_counted
        return loss, weight - lr * (grad.t() @ hidden), bias - lr * grad.sum(0)


class _Evaluate(_Frozen):
    def forward(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        values: torch.Tensor,
        kinds: torch.Tensor,
        labels: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = features(values, kinds, self.table) @ weight.t() + bias
        one_hot, counted = _one_hot(labels)
        loss = -(torch.log_softmax(logits, 1) * one_hot).sum() / counted.sum()
        return loss, (logits.argmax(1) == labels).to(torch.float32).sum(), counted.sum()


class _Predict(_Frozen):
    def forward(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        values: torch.Tensor,
        kinds: torch.Tensor,
    ) -> torch.Tensor:
        return features(values, kinds, self.table) @ weight.t() + bias


class _InitialState(nn.Module):
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", WEIGHT.clone())
        self.register_buffer("bias", BIAS.clone())

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.weight.clone(), self.bias.clone()


def _one_hot(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    one_hot = (labels.unsqueeze(1) == torch.arange(NUM_CLASSES)).to(torch.float32)
    return one_hot, (labels != -100).to(torch.float32)


@lru_cache
def tiny_program() -> bytes:
    """Returns the program as ExecuTorch's bytes, unsealed."""
    from executorch.exir import ExecutorchBackendConfig, to_edge
    from executorch.exir.passes import MemoryPlanningPass

    state = (WEIGHT, BIAS)
    train = (torch.zeros(BATCH, NUM_FEATURES), torch.zeros(BATCH, dtype=torch.int64))
    predict = tuple(tensor[:PREDICT_BATCH] for tensor in train)
    labels = torch.zeros(BATCH, dtype=torch.int64)
    programs = {
        "train_step": torch.export.export(
            _TrainStep(), (*state, *train, labels, torch.tensor(0.1))
        ),
        "evaluate": torch.export.export(_Evaluate(), (*state, *train, labels)),
        "predict": torch.export.export(_Predict(), (*state, *predict)),
        "initial_state": torch.export.export(_InitialState(), ()),
    }
    edge = to_edge(programs, constant_methods={"manifest": tiny_manifest().to_json()})
    config = ExecutorchBackendConfig(
        memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False)
    )
    program: bytes = edge.to_executorch(config).buffer
    return program


def tiny_manifest() -> Manifest:
    """Returns the manifest of the program."""
    weight = ("head.weight", (NUM_CLASSES, NUM_FEATURES))
    bias = ("head.bias", (NUM_CLASSES,))
    state = tuple(Tensor(name, "parameter", shape, "float32") for name, shape in (weight, bias))
    labels = Tensor("labels", "target", (BATCH,), "int64", 0, NUM_CLASSES - 1, -100)
    lr = Tensor("lr", "learning_rate", (), "float32")
    loss = Tensor("loss", "loss", (), "float32")
    metrics = tuple(
        Tensor(name, "metric", (), "float32") for name in ("num_correct", "num_counted")
    )
    output = Tensor("logits", "output", (PREDICT_BATCH, NUM_CLASSES), "float32")
    return Manifest(
        versions=Versions("0.1.0", "2.13.0", "1.5.1"),
        model=Model("TinyClassifier", "0" * 64),
        target="portable",
        methods={
            "train_step": _method((*state, *_inputs(BATCH), labels, lr), (loss, *state)),
            "evaluate": _method((*state, *_inputs(BATCH), labels), (loss, *metrics)),
            "predict": _method((*state, *_inputs(PREDICT_BATCH)), (output,)),
        },
        state=tuple(
            StateEntry(name, name, "parameter", None, shape, "float32")
            for name, shape in (weight, bias)
        ),
        plan=Plan(1, "head", {"head.weight": None, "head.bias": Slice(0, 0, NUM_CLASSES)}),
        optimizer={"name": "sgd", "weight_decay": 0.0},
        clip_norm=None,
        loss="cross_entropy",
        metrics=("num_correct", "num_counted"),
        state_bytes=4 * (WEIGHT.numel() + BIAS.numel()),
        frozen_bytes=4 * KIND_TABLE.numel(),
        num_nodes=NumNodes(1900, 60, 41),
        passes=(PassRecord("prune-backward", {"keep": ["head.weight"]}),),
        application={"vocabulary": "abc"},
    )


def _inputs(batch: int) -> tuple[Tensor, Tensor]:
    return (
        Tensor("values", "input", (batch, NUM_FEATURES), "float32"),
        Tensor("kinds", "input", (batch,), "int64", 0, NUM_KINDS - 1),
    )


def _method(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Method:
    outside = OutsideOperator(
        "aten.mm.default", "head", 8, "the portable target delegates nothing"
    )
    return Method(inputs, outputs, 12_345, 678, 0, 8, 0, (outside,))
