"""The models of our own: their sizes, names, ties, causality, gradients and export."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pockmobile import models
from pockmobile.models.folded_mobilenet import BlockSpec, ConvSpec, FoldedMobileNet
from pockmobile.models.llama import Llama, interleaved_to_halves, rotate
from pockmobile.models.mobilenet_v2 import round_channels
from pockmobile.models.transformer_lm import TransformerLM


def small_lm() -> TransformerLM:
    return TransformerLM(num_tokens=50, context=8, width=16, num_blocks=2, num_heads=2)


def small_llama(*, is_tied: bool = True) -> Llama:
    return Llama(
        num_tokens=50,
        context=8,
        width=16,
        hidden=24,
        num_blocks=2,
        num_heads=4,
        num_key_heads=2,
        is_tied=is_tied,
    )


def small_folded() -> FoldedMobileNet:
    block = BlockSpec(
        ConvSpec(8, 16, low=0.0, high=6.0),
        ConvSpec(16, 16, kernel=3, groups=16, low=0.0, high=6.0),
        ConvSpec(16, 8),
        has_shortcut=True,
    )
    first = ConvSpec(3, 8, kernel=3, stride=2, low=0.0, high=6.0, is_same_stride=True)
    return FoldedMobileNet(first, [block], last=ConvSpec(8, 12), num_classes=4)


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size)


def tokens(num_tokens: int = 50, length: int = 8) -> Tensor:
    return torch.randint(num_tokens, (2, length))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], tuple[int, ...]]] = {
    "mlp": (models.mlp, lambda: torch.randn(2, 16), (2, 4)),
    "residual_cnn": (models.residual_cnn, images, (2, 4)),
    "mobilenet_v1": (lambda: models.mobilenet_v1(num_classes=6), images, (2, 6)),
    "mobilenet_v2": (lambda: models.mobilenet_v2(0.35, 6), images, (2, 6)),
    "resnet18": (lambda: models.resnet18(6), images, (2, 6)),
    "resnet50": (lambda: models.resnet50(6), images, (2, 6)),
    "folded_mobilenet": (small_folded, images, (2, 4)),
    "transformer_lm": (small_lm, tokens, (2, 8, 50)),
    "llama": (small_llama, tokens, (2, 8, 50)),
}


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, tuple[int, ...]]:
    torch.manual_seed(0)
    make_model, make_input, shape = CASES[request.param]
    return make_model().eval(), make_input(), shape


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_model_maps_to_logits_and_passes_gradients_to_every_parameter(
    case: tuple[nn.Module, Tensor, tuple[int, ...]],
) -> None:
    model, inputs, shape = case
    logits = model(inputs)
    assert logits.shape == shape
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_every_model_exports_and_computes_the_same(
    case: tuple[nn.Module, Tensor, tuple[int, ...]],
) -> None:
    model, inputs, _ = case
    exported = torch.export.export(model, (inputs,), strict=False)
    torch.testing.assert_close(exported.module()(inputs), model(inputs))


@pytest.mark.parametrize(
    ("make_model", "expected"),
    [
        (models.mobilenet_v1, 470_072),
        (models.mobilenet_v2, 3_504_872),
        (models.resnet18, 11_689_512),
        (models.resnet50, 25_557_032),
        (models.tiny_llama, 260_032),
        (models.keyboard_lm, 10_000 * 129 + 32 * 128 + 3 * 198_272 + 256),
    ],
)
def test_known_models_have_the_known_number_of_parameters(
    make_model: Callable[[], nn.Module], expected: int
) -> None:
    # On the meta device nothing is allocated; the initialisation is skipped.
    with torch.device("meta"):
        assert num_parameters(make_model()) == expected


def test_a_narrow_mobilenet_v2_has_the_channels_of_the_published_one() -> None:
    with torch.device("meta"):
        features = models.mobilenet_v2(0.35).features[:18]
    folded = [
        parameter.numel()
        for name, parameter in features.named_parameters()
        # Folding leaves one bias for each channel; BatchNorm's weights are one-dimensional.
        if parameter.dim() == 4 or name.endswith("bias")
    ]
    # tiny-training's MobileNetV2-w0.35 has 357,448 parameters with its classifier of 112.
    assert sum(folded) == 357_448 - 1000 * (112 + 1)


def test_names_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        mobilenet = dict(models.mobilenet_v2().named_parameters())
        resnet = dict(models.resnet50().named_parameters())
    assert mobilenet["features.0.0.weight"].shape == (32, 3, 3, 3)
    assert mobilenet["features.1.conv.0.0.weight"].shape == (32, 1, 3, 3)
    assert mobilenet["features.2.conv.3.weight"].shape == (24,)
    assert mobilenet["features.18.0.weight"].shape == (1280, 320, 1, 1)
    assert mobilenet["classifier.1.weight"].shape == (1000, 1280)
    assert resnet["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert resnet["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert resnet["fc.bias"].shape == (1000,)


@pytest.mark.parametrize(
    ("exact", "expected"), [(1.0, 8), (11.2, 16), (12.0, 16), (33.6, 32), (448.0, 448)]
)
def test_channels_are_rounded_to_eights_and_not_down_by_a_tenth(
    exact: float, expected: int
) -> None:
    assert round_channels(exact) == expected


@pytest.mark.parametrize("make_model", [small_lm, small_llama])
def test_embeddings_are_one_parameter_with_two_uses(
    make_model: Callable[[], TransformerLM | Llama],
) -> None:
    model = make_model()
    assert model.head.weight is model.embedding.weight
    assert "head.weight" not in dict(model.named_parameters())


def test_a_language_model_can_have_a_bias_for_each_token() -> None:
    torch.manual_seed(0)
    model = TransformerLM(
        num_tokens=50, context=8, width=16, num_blocks=1, num_heads=2, head_bias=True
    )
    inputs = tokens()
    before = model(inputs)
    with torch.no_grad():
        model.head.bias[7] += 2.0
    shift = 2.0 * (torch.arange(50) == 7)
    torch.testing.assert_close(model(inputs), before + shift)


def test_llama_can_have_a_head_of_its_own() -> None:
    model = small_llama(is_tied=False)
    assert model.head.weight is not model.embedding.weight


@pytest.mark.parametrize("make_model", [small_lm, small_llama])
def test_a_token_changes_no_logits_before_it(
    make_model: Callable[[], TransformerLM | Llama],
) -> None:
    torch.manual_seed(0)
    model, before = make_model(), tokens()
    after = before.clone()
    after[:, 5] = (after[:, 5] + 1) % 50
    difference = (model(after) - model(before)).abs().amax((0, 2))
    assert difference[:5].max() == 0
    assert difference[5:].min() > 0


@pytest.mark.parametrize("make_model", [small_lm, small_llama])
def test_language_models_take_fewer_tokens_than_the_context(
    make_model: Callable[[], TransformerLM | Llama],
) -> None:
    torch.manual_seed(0)
    model, whole = make_model(), tokens()
    torch.testing.assert_close(model(whole[:, :3]), model(whole)[:, :3])


def test_rotary_halves_equal_complex_interleaved_pairs_after_reordering() -> None:
    torch.manual_seed(0)
    heads, width, length = 2, 6, 5
    x, weight = torch.randn(1, length, 7), torch.randn(heads * width, 7)
    angles = torch.randn(length, width // 2)

    pairs = (x @ weight.T).reshape(1, length, heads, width // 2, 2)
    turned = torch.view_as_complex(pairs) * torch.polar(
        torch.ones_like(angles), angles
    ).unsqueeze(1)
    expected = torch.einsum("bihc,bjhc->bhij", turned, turned.conj()).real

    reordered = interleaved_to_halves(weight, head_width=width)
    queries = (x @ reordered.T).reshape(1, length, heads, width).transpose(1, 2)
    ours = rotate(queries, angles.cos(), angles.sin())
    torch.testing.assert_close(ours @ ours.transpose(-2, -1), expected)


def test_same_stride_pads_after_the_image_only() -> None:
    model = small_folded()
    conv = model.first.conv
    assert conv.bias is not None
    x = images(4)
    y = model.first(x)
    corner = (x[:, :, 2:, 2:] * conv.weight[:, None, :, :2, :2]).sum((2, 3, 4))
    expected = (corner + conv.bias[:, None]).clamp(0, 6).T
    assert y.shape == (2, 8, 2, 2)
    torch.testing.assert_close(y[:, :, 1, 1], expected)
