"""A split program computes the same, and starts where the model begins to learn."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pockmobile
from pockmobile import Session
from pockmobile.errors import InputError, PlanError
from pockmobile.models import mobilenet_v2
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.session import Latents

BATCH = 4
LR = 0.1


def images(rows: int = BATCH) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 3, 64, 64), torch.randint(5, (rows,))


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    model = mobilenet_v2(0.35, 5)
    # With the statistics of a fresh BatchNorm the activations vanish.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model(images(8)[0])
    return model.eval()


def save(folder: Path, *, split: bool, plan: str = "last:2", target: str = "xnnpack") -> Path:
    path = folder / f"{'split' if split else 'whole'}.pte"
    inputs, labels = images()
    model = convolutional()
    pockmobile.compile(model, (inputs,), (labels,), plan=plan, split=split, target=target).save(
        path
    )
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("split")
    return save(folder, split=True), save(folder, split=False)


@pytest.fixture
def split(paths: tuple[Path, Path]) -> Session:
    return Session(paths[0])


@pytest.fixture
def whole(paths: tuple[Path, Path]) -> Session:
    return Session(paths[1])


def assert_same_state(one: Session, other: Session) -> None:
    assert one.state.keys() == other.state.keys()
    for name, value in one.state.items():
        torch.testing.assert_close(value, other.state[name], rtol=1e-4, atol=1e-5)


def test_latents_and_inputs_train_alike(split: Session, whole: Session) -> None:
    torch.manual_seed(1)
    batches = [images() for _ in range(5)]
    latents = [split.encode(inputs) for inputs, _ in batches]
    for (inputs, labels), encoded in zip(batches, latents, strict=True):
        expected = whole.step(inputs, labels, LR)
        assert split.step(encoded, labels, LR) == pytest.approx(expected, rel=1e-4)
    assert_same_state(split, whole)
    inputs, labels = images()
    assert split.step(inputs, labels, LR) == pytest.approx(
        whole.step(inputs, labels, LR), rel=1e-4
    )
    assert_same_state(split, whole)
    rows = images(7)
    found, expected = split.evaluate(split.encode(rows[0]), rows[1]), whole.evaluate(*rows)
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert found.metrics == expected.metrics
    torch.testing.assert_close(split.predict(rows[0]), whole.predict(rows[0]))


def test_a_step_runs_no_frozen_layer(split: Session, whole: Session) -> None:
    methods, unsplit = split.manifest.methods, whole.manifest.methods
    saved = unsplit["train_step"].num_operators - methods["train_step"].num_operators
    assert saved > 50
    assert methods["encode"].num_operators > 50
    assert [tensor.role for tensor in methods["encode"].inputs] == ["input"]
    assert [t.shape for t in split.manifest.inputs] == [(BATCH, 3, 64, 64)]
    trained = {tensor.name for tensor in methods["train_step"].inputs_of("input")}
    assert trained == {tensor.name for tensor in methods["encode"].outputs}


def test_rows_are_picked_and_joined(split: Session) -> None:
    inputs, labels = images(7)
    whole = split.encode(inputs)
    assert len(whole) == 7
    parts = split.encode(inputs[:3]).joined(split.encode(inputs[3:]))
    picked = parts.rows([6, 0, 2])
    for name, value in whole.rows(torch.tensor([6, 0, 2])).values().items():
        torch.testing.assert_close(picked.values()[name], value)
    assert len(picked) == 3
    assert picked.num_bytes == 3 * whole.num_bytes // 7
    assert split.evaluate(picked, labels[[6, 0, 2]]).loss == pytest.approx(
        split.evaluate(inputs[[6, 0, 2]], labels[[6, 0, 2]]).loss, rel=1e-5
    )


def test_int8_is_off_by_at_most_half_a_level(split: Session) -> None:
    exact = split.encode(images(5)[0])
    small = exact.in_int8()
    assert small.num_bytes < 0.27 * exact.num_bytes
    assert small.in_int8().num_bytes == small.num_bytes
    for name, value in small.rows([4, 1]).joined(small.rows([0])).values().items():
        expected = exact.values()[name][[4, 1, 0]]
        largest = expected.reshape(3, -1).abs().amax(1).reshape(-1, *[1] * (value.dim() - 1))
        assert value.dtype == torch.float32
        assert ((value - expected).abs() <= 1.001 * largest / 254).all()


def test_rows_of_zeros_and_labels_stay() -> None:
    latents = Latents("", {"a": torch.zeros(2, 3), "b": torch.arange(2)}).in_int8()
    assert torch.equal(latents.values()["a"], torch.zeros(2, 3))
    assert torch.equal(latents.values()["b"], torch.arange(2))


def test_int8_latents_still_teach(split: Session) -> None:
    torch.manual_seed(2)
    inputs, labels = images()
    latents = split.encode(inputs).in_int8()
    losses = [split.step(latents, labels, 0.01) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def test_tokens_and_masks_cross_the_cut(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TransformerLM(num_tokens=40, context=8, width=16, num_blocks=3, num_heads=2)
    tokens = torch.randint(40, (2, 8))
    update = {f"blocks.2.{n}": None for n, _ in model.blocks[2].named_parameters()}
    plan = pockmobile.UpdatePlan(update=update)
    sessions = []
    for split in (True, False):
        path = tmp_path / f"{split}.pte"
        pockmobile.compile(model, (tokens,), loss="next_token", plan=plan, split=split).save(
            path
        )
        sessions.append(Session(path))
    for _ in range(3):
        losses = [session.step(tokens, tokens, LR) for session in sessions]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert_same_state(*sessions)
    with pytest.raises(InputError, match="expected 0 <= value <= 39"):
        sessions[0].encode(torch.full((2, 8), 40))


def test_portable(tmp_path: Path) -> None:
    torch.manual_seed(3)
    inputs, labels = images()
    one, other = (
        Session(save(tmp_path, split=split, plan="bias" if not split else "last:1", target=t))
        for split, t in ((True, "portable"), (True, "xnnpack"))
    )
    assert one.step(one.encode(inputs), labels, LR) == pytest.approx(
        other.step(other.encode(inputs), labels, LR), rel=1e-4
    )


def test_nothing_to_split_off() -> None:
    inputs, labels = images()
    with pytest.raises(PlanError, match="no layer before the first that learns is frozen"):
        pockmobile.compile(convolutional(), (inputs,), (labels,), plan="full", split=True)


class Mixing(nn.Module):
    """Its rows depend on each other before the layer that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).cumsum(0))


def test_rows_that_depend_on_others_are_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(PlanError, match="no row for each of 4 examples"):
        pockmobile.compile(
            Mixing(), (torch.randn(4, 6),), (torch.zeros(4).long(),), plan="head", split=True
        )


def test_a_program_that_is_not_split_has_no_latents(split: Session, whole: Session) -> None:
    inputs, labels = images()
    for wrong in (
        lambda: whole.encode(inputs),
        lambda: whole.step(split.encode(inputs), labels, LR),
    ):
        with pytest.raises(InputError, match="was not split"):
            wrong()


def test_latents_of_another_program_are_refused(split: Session) -> None:
    inputs, labels = images()
    other = Latents("0" * 64, split.encode(inputs).tensors)
    with pytest.raises(InputError, match="of another program; encode the inputs again"):
        split.step(other, labels, LR)
    with pytest.raises(InputError, match="latents of several programs"):
        other.joined(split.encode(inputs))
