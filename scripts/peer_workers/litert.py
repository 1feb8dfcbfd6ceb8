"""Trains with LiteRT, from the model that `litert_build` made."""

from typing import final

import numpy as np
import tensorflow as tf
from numpy import ndarray

from scripts.benchmark.variants import Job
from scripts.peer_workers.network import read_batch


def load_late() -> None:
    """Makes TensorFlow import what it imports at first use."""
    _ = tf.lite.Interpreter


def open_engine(job: Job) -> "_LiteRt":
    """Returns the trainer."""
    return _LiteRt(job)


def channels_last(inputs: ndarray) -> ndarray:
    """Returns images [B, C, H, W] as [B, H, W, C], and tokens as they are."""
    return np.ascontiguousarray(inputs.transpose(0, 2, 3, 1)) if inputs.ndim == 4 else inputs


@final
class _LiteRt:
    def __init__(self, job: Job) -> None:
        interpreter = tf.lite.Interpreter(job.program, num_threads=job.threads)
        self._train = interpreter.get_signature_runner("train")
        batch = read_batch(job.inputs)
        self._batch = {"inputs": channels_last(batch.inputs), "targets": batch.targets}

    def step(self, lr: float) -> float:
        return float(self._train(**self._batch, rate=np.float32(lr))["loss"])
