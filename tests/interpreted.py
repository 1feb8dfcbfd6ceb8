"""Training by a program whose delegates are interpreted."""

from typing import final

import torch
from torch import Tensor

import pockmobile
from pockmobile.testing import InterpretedProgram


@final
class InterpretedSession:
    """What parity needs of a session: steps and the state."""

    def __init__(self, program: pockmobile.Program) -> None:
        self.source = program
        self.program = InterpretedProgram(program.buffer)
        self.manifest = self.program.manifest
        self._state: list[Tensor] = self.program.run("initial_state", [])

    @property
    def state(self) -> dict[str, Tensor]:
        pairs = zip(self.manifest.state, self._state, strict=True)
        return {entry.name: value for entry, value in pairs}

    @property
    def parameters(self) -> list[Tensor]:
        return self._state[: len(self.manifest.parameters)]

    def step(self, inputs: Tensor, targets: Tensor, *, lr: float) -> float:
        batch = (inputs, targets, torch.tensor(lr))
        loss, *self._state = self.program.run("train_step", [*self._state, *batch])
        return float(loss)
