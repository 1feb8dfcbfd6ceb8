"""Trains with ONNX Runtime, from the artifacts that `onnxruntime_build` made."""

from pathlib import Path
from typing import Final, final

from onnxruntime import SessionOptions, set_default_logger_severity

from scripts.benchmark.variants import Job
from scripts.peer_workers.network import read_batch
from scripts.peer_workers.onnxruntime_training import training_module

_api: Final = training_module("api")


def load_late() -> None:
    """Tells the library to be quiet: all is imported."""
    set_default_logger_severity(3)


def open_engine(job: Job) -> "_OnnxRuntime":
    """Returns the trainer."""
    return _OnnxRuntime(job)


@final
class _OnnxRuntime:
    def __init__(self, job: Job) -> None:
        assert job.program is not None
        folder = Path(job.program)
        options = SessionOptions()
        options.intra_op_num_threads = job.threads
        options.inter_op_num_threads = 1
        state = _api.CheckpointState.load_checkpoint(str(folder / "checkpoint"))
        self._module = _api.Module(
            str(folder / "training_model.onnx"), state, session_options=options
        )
        self._optimizer = _api.Optimizer(str(folder / "optimizer_model.onnx"), self._module)
        batch = read_batch(job.inputs)
        self._batch = (batch.inputs, batch.targets)
        self._module.train()

    def step(self, lr: float) -> float:
        loss = self._module(*self._batch)
        self._optimizer.set_learning_rate(lr)
        self._optimizer.step()
        self._module.lazy_reset_grad()
        return float(loss)
