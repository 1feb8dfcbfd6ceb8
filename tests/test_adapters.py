"""LoRA as a plan: the adapters train, the weights beside them stay, in step with eager."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as func
from torch import Tensor, nn

import pockmobile
from pockmobile.capture import describe_layers, export_forward
from pockmobile.errors import PlanError
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.plan import resolve_plan
from pockmobile.session import Session


class _Adapted(nn.Module):
    """The same adapter in eager PyTorch, written independently."""

    def __init__(self, linear: nn.Linear, lora_a: Tensor, lora_b: Tensor) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora_a = nn.Parameter(lora_a.clone())
        self.lora_b = nn.Parameter(lora_b.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.lora_a.t() @ self.lora_b.t()


def _model() -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(num_tokens=40, context=6, width=16, num_blocks=2, num_heads=2).eval()


def _adapt(model: nn.Module, state: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    model.requires_grad_(False)
    trained = {}
    for name in [key.removesuffix(".weight.lora_a") for key in state if key.endswith("lora_a")]:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        factors = [state[f"{name}.weight.{factor}"] for factor in ("lora_a", "lora_b")]
        adapted = _Adapted(linear, *factors)
        model.set_submodule(name, adapted)
        trained[f"{name}.weight.lora_a"] = adapted.lora_a
        trained[f"{name}.weight.lora_b"] = adapted.lora_b
    return trained


@pytest.mark.parametrize("target", ["xnnpack", "portable"])
def test_adapters_follow_eager(target: str, tmp_path: Path) -> None:
    tokens = torch.randint(40, (4, 6))
    program = pockmobile.compile(_model(), (tokens,), plan="lora:2", target=target)
    program.save(tmp_path / "model.pte")
    session = Session(tmp_path / "model.pte")
    eager = _model()
    before = session.predict(tokens)
    torch.testing.assert_close(before, eager(tokens), rtol=1e-4, atol=1e-5)

    trained = _adapt(eager, dict(session.parameters))
    assert set(trained) == set(session.parameters)
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    for _ in range(5):
        tokens, labels = torch.randint(40, (4, 6)), torch.randint(40, (4, 6))
        found = session.step(tokens, labels, lr=0.5)
        optimizer.zero_grad()
        loss = func.cross_entropy(eager(tokens).flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step()
        assert found == pytest.approx(loss.item(), rel=1e-5)
        for name, value in session.parameters.items():
            torch.testing.assert_close(value, trained[name].detach(), rtol=1e-4, atol=1e-5)


class _AdaptedConv(nn.Module):
    """The same beside a 1x1 convolution, as a product over channels."""

    def __init__(self, conv: nn.Conv2d, lora_a: Tensor, lora_b: Tensor) -> None:
        super().__init__()
        self.conv = conv
        self.lora_a = nn.Parameter(lora_a.clone())
        self.lora_b = nn.Parameter(lora_b.clone())

    def forward(self, x: Tensor) -> Tensor:
        places = x[:, :, :: self.conv.stride[0], :: self.conv.stride[1]]
        low = torch.einsum("ri,bihw->brhw", self.lora_a.flatten(1), places)
        return self.conv(x) + torch.einsum("or,brhw->bohw", self.lora_b.flatten(1), low)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 12, 1, stride=2)
        self.norm = nn.BatchNorm2d(12)
        self.depth = nn.Conv2d(12, 12, 3, groups=12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.wide(self.stem(x).relu())).relu()
        return self.head(self.depth(x).mean((2, 3)))


@pytest.mark.parametrize("target", ["xnnpack", "portable"])
def test_adapters_beside_a_pointwise_convolution_follow_eager(
    target: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    eager = _Net().eval()
    program = pockmobile.compile(
        eager, (torch.randn(4, 3, 8, 8),), plan="lora:2", target=target
    )
    program.save(tmp_path / "model.pte")
    session = Session(tmp_path / "model.pte")
    start = session.parameters
    factors = [start[f"wide.weight.{factor}"] for factor in ("lora_a", "lora_b")]
    assert set(start) == {
        "wide.weight.lora_a", "wide.weight.lora_b", "head.weight", "head.bias",
    }  # fmt: skip
    eager.requires_grad_(False)
    eager.head.requires_grad_(True)
    eager.wide = _AdaptedConv(eager.wide, *factors)
    trained = [parameter for parameter in eager.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for _ in range(5):
        images, labels = torch.randn(4, 3, 8, 8), torch.randint(3, (4,))
        found = session.step(images, labels, lr=0.5)
        optimizer.zero_grad()
        loss = func.cross_entropy(eager(images), labels)
        loss.backward()
        optimizer.step()
        assert found == pytest.approx(loss.item(), rel=1e-5)
    for factor in ("lora_a", "lora_b"):
        expected = getattr(eager.wide, factor).detach()
        torch.testing.assert_close(
            session.parameters[f"wide.weight.{factor}"], expected, rtol=1e-4, atol=1e-5
        )


def test_adapters_of_the_last_blocks_alone() -> None:
    layers = describe_layers(export_forward(_model(), (torch.randint(40, (4, 6)),)))
    every, last = resolve_plan("lora:2", layers), resolve_plan("lora:2:1", layers)
    assert set(last.adapters) == {name for name in every.adapters if name[:9] == "blocks.1."}


def test_a_plan_with_adapters_survives_its_file(tmp_path: Path) -> None:
    name = "blocks.0.mlp.0.weight"
    update = {f"{name}.lora_a": None, f"{name}.lora_b": None}
    plan = pockmobile.UpdatePlan(update, adapters={name: 3})
    plan.save(tmp_path / "plan.json")
    assert pockmobile.UpdatePlan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("adapters", "text"),
    [
        (
            {"embedding.weight_": 2},
            "is no weight of a linear layer or 1x1 convolution: did you mean",
        ),
        ({"blocks.0.mlp.0.weight": 99}, "cannot have an adapter of rank 99"),
    ],
)
def test_a_wrong_adapter_is_refused(adapters: dict[str, int], text: str) -> None:
    plan = pockmobile.UpdatePlan({"head.weight": None}, adapters=adapters)
    with pytest.raises(PlanError, match=text):
        pockmobile.compile(_model(), (torch.randint(40, (4, 6)),), plan=plan)
