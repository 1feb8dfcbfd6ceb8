"""A step whose frozen layers run for a part of the batch at a time trains as eager does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pockmobile
from pockmobile.optim import SGD
from pockmobile.session import Session
from tests.eager import Eager


class Net(nn.Module):
    """Inverted residuals of which the first are wide; the last convolution is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_layers(3, 8, 3, 1))
        self.expand = nn.Sequential(*_layers(8, 48, 1, 1))
        self.depthwise = nn.Sequential(*_layers(48, 48, 3, 48))
        self.project = nn.Sequential(*_layers(48, 8, 1, 1)[:2])
        self.last = nn.Sequential(nn.MaxPool2d(2), *_layers(8, 16, 3, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(self.last(x).mean((2, 3)))  # type: ignore[no-any-return]


def _layers(inputs: int, outputs: int, kernel: int, groups: int) -> list[nn.Module]:
    convolution = nn.Conv2d(
        inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False
    )
    norm = nn.BatchNorm2d(outputs)
    nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return [convolution, norm, nn.ReLU6()]


@pytest.mark.parametrize("size", [4, 6, 7])
@pytest.mark.parametrize("trained", ["head", "last"])
def test_a_batch_in_parts_trains_as_eager_does(size: int, trained: str, tmp_path: Path) -> None:
    torch.manual_seed(size)
    model = Net().eval()
    images, labels = torch.randn(size, 3, 32, 32), torch.randint(5, (size,))
    names = [name for name, _ in model.named_parameters() if name.startswith(("head", trained))]
    plan = pockmobile.UpdatePlan(dict.fromkeys(names))
    program = pockmobile.compile(model, (images,), plan=plan)
    method = program.manifest.methods["train_step"]
    inside = [item.operators for item in method.delegates]
    assert sum(operators.get("aten.cat.default", 0) for operators in inside) == 1
    # Of the whole batch an expansion takes as much, and what is made of it as much again.
    wide = size * 48 * 32 * 32 * 4
    assert method.workspace_bytes < wide
    for name in ("evaluate", "predict"):
        assert program.manifest.methods[name].workspace_bytes < 1.5 * wide
    program.save(tmp_path / "model.pte")
    session, eager = Session(tmp_path / "model.pte"), Eager(model, program, SGD())
    for _ in range(4):
        found = session.step(images, labels, lr=0.05)
        assert found == pytest.approx(eager.step(images, labels, 0.05), rel=1e-4)
        torch.testing.assert_close(
            session.predict(images), eager.output(images).detach(), rtol=1e-4, atol=1e-4
        )
        images, labels = torch.randn(size, 3, 32, 32), torch.randint(5, (size,))
    for name, leaf in eager.leaves.items():
        torch.testing.assert_close(session.state[name], leaf.detach(), rtol=1e-4, atol=1e-5)
        assert not torch.equal(leaf, dict(model.named_parameters())[name])
