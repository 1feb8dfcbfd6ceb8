"""The same model and plan give the same program, byte for byte."""

import pytest
import torch

import pockmobile
from pockmobile import models


@pytest.mark.parametrize("target", ["portable", "xnnpack"])
def test_two_compilations_give_the_same_bytes(target: str) -> None:
    torch.manual_seed(0)
    model, images = models.residual_cnn().eval(), torch.randn(4, 3, 16, 16)
    first, second = (
        pockmobile.compile(model, (images,), plan="sparse:2:1", target=target).buffer
        for _ in range(2)
    )
    assert first == second
