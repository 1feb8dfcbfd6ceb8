"""The update space: what can be trained of each layer, and the plans of its selections."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from pockmobile import models
from pockmobile.capture import describe_layers, export_forward
from pockmobile.errors import PlanError
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.plan import Layer, Slice, UpdatePlan, check_plan, resolve_plan
from pockmobile.space import (
    Option,
    UpdateSpace,
    selection_of,
    update_space,
)

Shapes = dict[str, tuple[int, ...]]


def described(model: nn.Module, example: Tensor) -> tuple[tuple[Layer, ...], Shapes]:
    forward = export_forward(model.eval(), (example,))
    shapes = {name: tuple(forward.parameters[name].shape) for name in forward.trainable}
    return describe_layers(forward), shapes


@pytest.fixture(scope="module")
def mobile_net() -> tuple[tuple[Layer, ...], Shapes]:
    return described(models.mobilenet_v2(0.35, num_classes=6), torch.randn(1, 3, 32, 32))


@pytest.fixture(scope="module")
def language_model() -> tuple[tuple[Layer, ...], Shapes]:
    model = TransformerLM(num_tokens=40, context=6, width=16, num_blocks=2, num_heads=2)
    return described(model, torch.zeros(1, 6, dtype=torch.int64))


def options_of(space: UpdateSpace, layer: str) -> dict[str, dict[str, Slice | None]]:
    (found,) = (each for each in space.layers if each.layer == layer)
    return {option.share_name: dict(option.update) for option in found.options}


def sizes(layer: Layer, num_channels: int) -> Shapes:
    return {layer.weight: (num_channels, num_channels), "head.weight": (2, num_channels)}


HEAD = Layer("head", "", "linear", "head.weight", "")
LINEAR = Layer("a", "", "linear", "a.weight", "a.bias")


def test_the_head_is_the_base(mobile_net: tuple[tuple[Layer, ...], Shapes]) -> None:
    space = update_space(*mobile_net)
    assert space.base == {"classifier.1.weight": None, "classifier.1.bias": None}
    assert all("classifier" not in option.layer for option in space.options)


def test_the_bias_of_a_norm_belongs_to_the_convolution_and_its_scale_is_frozen(
    mobile_net: tuple[tuple[Layer, ...], Shapes],
) -> None:
    layers, shapes = mobile_net
    space = update_space(layers, shapes)
    trained = {name for option in space.options for name in option.update}
    norms = [layer for layer in layers if layer.kind == "norm"]
    assert len(norms) == 52
    assert {layer.bias for layer in norms} <= trained
    assert not {layer.weight for layer in norms} & trained
    convolutions = [layer.path for layer in layers if layer.kind == "convolution"]
    assert [layer.layer for layer in space.layers] == convolutions
    # A 1x1 convolution of 48 to 8 channels: shares of its input channels.
    assert options_of(space, "features.2.conv.2") == {
        "bias": {"features.2.conv.3.bias": None},
        "1/8": {"features.2.conv.2.weight": Slice(1, 0, 6), "features.2.conv.3.bias": None},
        "1/4": {"features.2.conv.2.weight": Slice(1, 0, 12), "features.2.conv.3.bias": None},
        "1/2": {"features.2.conv.2.weight": Slice(1, 0, 24), "features.2.conv.3.bias": None},
        "whole": {"features.2.conv.2.weight": None, "features.2.conv.3.bias": None},
    }


def test_a_depthwise_weight_is_sliced_along_its_only_channels(
    mobile_net: tuple[tuple[Layer, ...], Shapes],
) -> None:
    layers, shapes = mobile_net
    assert shapes["features.2.conv.1.0.weight"][1] == 1
    found = options_of(update_space(layers, shapes), "features.2.conv.1.0")
    assert found["1/8"]["features.2.conv.1.0.weight"] == Slice(0, 0, 6)


def test_a_weight_of_three_channels_has_no_eighth_of_them(
    mobile_net: tuple[tuple[Layer, ...], Shapes],
) -> None:
    found = options_of(update_space(*mobile_net), "features.0.0")
    assert list(found) == ["bias", "1/4", "1/2", "whole"]
    assert found["1/4"]["features.0.0.weight"] == Slice(1, 0, 1)


def test_a_tied_head_is_no_base(language_model: tuple[tuple[Layer, ...], Shapes]) -> None:
    layers, shapes = language_model
    space = update_space(layers, shapes)
    assert space.base == {}
    assert not any(space.frozen)
    tables = [layer for layer in space.layers if layer.layer == "embedding"]
    assert len(tables) == 1
    assert [option.share_name for option in tables[0].options] == ["1/8", "1/4", "1/2", "whole"]


def test_a_table_is_sliced_by_rows(
    language_model: tuple[tuple[Layer, ...], Shapes],
) -> None:
    layers, shapes = language_model
    num_rows = shapes["embedding.weight"][0]
    found = options_of(update_space(layers, shapes), "embedding")
    assert found["1/4"] == {"embedding.weight": Slice(0, 0, num_rows // 4)}


def test_only_the_bias_of_a_tied_head_is_the_base() -> None:
    table = Layer("table", "", "embedding", "table.weight", "")
    head = Layer("head", "", "linear", "table.weight", "head.bias")
    space = update_space([table, head], {"table.weight": (8, 8), "head.bias": (8,)})
    assert space.base == {"head.bias": None}
    assert [layer.layer for layer in space.layers] == ["table"]


def test_norms_without_a_convolution_are_trained_by_bias_or_whole(
    language_model: tuple[tuple[Layer, ...], Shapes],
) -> None:
    space = update_space(*language_model)
    assert options_of(space, "blocks.0.attention_norm") == {
        "bias": {"blocks.0.attention_norm.bias": None},
        "whole": {
            "blocks.0.attention_norm.weight": None, "blocks.0.attention_norm.bias": None,
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", ["mobile_net", "language_model"])
def test_names_are_unique_and_every_option_is_a_plan(
    name: str, request: pytest.FixtureRequest
) -> None:
    layers, shapes = request.getfixturevalue(name)
    space = update_space(layers, shapes)
    names = [option.name for option in space.options]
    assert len(set(names)) == len(names)
    parameters = [{n for o in layer.options for n in o.update} for layer in space.layers]
    assert sum(map(len, parameters)) == len(set().union(*parameters)), "in two layers"
    for layer in space.layers:
        shares = [option.share for option in layer.options]
        assert shares == sorted(set(shares))
    for option in space.options:
        check_plan(UpdatePlan(option.update), shapes)


def test_loose_parameters_of_one_owner_have_names_of_their_own() -> None:
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, 4))
            self.shift = nn.Parameter(torch.zeros(4, 4))
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.scale + self.shift)  # type: ignore[no-any-return]

    space = update_space(*described(Loose(), torch.randn(4, 4)))
    assert [layer.layer for layer in space.layers] == ["scale", "shift"]


def test_what_is_frozen_in_the_model_is_not_in_the_space() -> None:
    model = models.mlp(8, 2)
    model.layers[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    model.layers[1].requires_grad_(False)
    space = update_space(*described(model, torch.randn(2, 8)))
    assert [option.name for option in space.options] == ["layers.0 bias"]


def test_a_window_is_put_where_the_energy_is_largest() -> None:
    shapes = {**sizes(LINEAR, 8), "a.bias": (8,)}
    energy = [0.0, 0.0, 5.0, 0.0, 1.0, 0.0, 3.0, 3.0]
    found = options_of(update_space([LINEAR, HEAD], shapes, lambda *_: energy), "a")
    windows = {share: update["a.weight"] for share, update in found.items() if share != "bias"}
    assert windows == {
        "1/8": Slice(1, 2, 3), "1/4": Slice(1, 6, 8), "1/2": Slice(1, 4, 8), "whole": None,
    }  # fmt: skip


@given(
    st.lists(st.floats(0, 1e6), min_size=2, max_size=40),
    st.lists(st.floats(0, 1e6), min_size=2, max_size=40),
)
def test_no_window_at_a_multiple_of_its_width_has_more_energy(
    energy: list[float], other: list[float]
) -> None:
    shapes = sizes(LINEAR, len(energy))
    energies = {"a.weight": energy, "b.weight": other}
    space = update_space([LINEAR, HEAD], shapes, lambda weight, _: energies[weight])
    for option in space.options:
        part = option.update["a.weight"]
        if part is not None:
            width = part.stop - part.start
            sums = [sum(energy[start : start + width]) for start in range(0, len(energy), width)
                    if start + width <= len(energy)]  # fmt: skip
            assert part.start % width == 0
            assert sum(energy[part.start : part.stop]) == max(sums)


@pytest.mark.parametrize(
    ("num_channels", "expected"),
    [
        (1, ["whole"]),
        (2, ["1/2", "whole"]),
        (3, ["1/4", "1/2", "whole"]),
        (8, ["1/8", "1/4", "1/2", "whole"]),
    ],
)
def test_too_few_channels_have_fewer_shares(num_channels: int, expected: list[str]) -> None:
    space = update_space([LINEAR, HEAD], sizes(LINEAR, num_channels))
    assert list(options_of(space, "a")) == expected


def test_a_share_that_has_no_name_is_a_number() -> None:
    assert Option("a", 0.125, {}).name == "a 1/8"
    assert Option("a", 1 / 3, {}).name == "a 0.333"


def test_a_model_without_head_is_an_error() -> None:
    norm = Layer("norm", "", "norm", "norm.weight", "norm.bias")
    with pytest.raises(PlanError, match="no linear or convolution layer, so no head"):
        update_space([norm], {"norm.weight": (4,), "norm.bias": (4,)})


@pytest.mark.parametrize("name", ["mobile_net", "language_model"])
@given(data=st.data())
def test_the_selection_of_a_selections_plan_is_the_selection(
    name: str, data: st.DataObject, request: pytest.FixtureRequest
) -> None:
    space = update_space(*request.getfixturevalue(name))
    numbers = [st.integers(0, len(layer.options)) for layer in space.layers]
    selection = data.draw(st.tuples(*numbers))
    plan = space.plan(selection)
    assert selection_of(space, plan) == selection
    assert plan.update.items() >= dict(space.base).items()
    chosen = space.chosen(selection)
    assert [option.layer for option in chosen] == [
        layer.layer for layer, number in zip(space.layers, selection, strict=True) if number
    ]
    assert set(plan.update) == set(space.base).union(*(option.update for option in chosen))


def test_the_selection_of_a_preset_trains_no_more_than_the_preset(
    mobile_net: tuple[tuple[Layer, ...], Shapes],
) -> None:
    layers, shapes = mobile_net
    space = update_space(layers, shapes)
    full = selection_of(space, resolve_plan("full", layers))
    assert full == tuple(len(layer.options) for layer in space.layers)
    assert selection_of(space, resolve_plan("head", layers)) == space.frozen
    biases = selection_of(space, resolve_plan("bias", layers))
    assert biases == (1,) * len(space.layers)
    sparse = resolve_plan("sparse:3:2", layers)
    assert space.plan(selection_of(space, sparse)).update == sparse.update


def test_a_slice_of_other_channels_is_not_trained() -> None:
    space = update_space([LINEAR, HEAD], {**sizes(LINEAR, 8), "a.bias": (8,)})
    other = {"head.weight": None, "a.bias": None, "a.weight": Slice(1, 4, 8)}
    assert selection_of(space, UpdatePlan(other)) == (1,)
    assert selection_of(space, UpdatePlan({**other, "a.weight": Slice(1, 0, 4)})) == (4,)


def test_a_plan_without_the_base_is_an_error() -> None:
    space = update_space([LINEAR, HEAD], sizes(LINEAR, 8))
    with pytest.raises(PlanError, match=r"does not train head\.weight, which a search always"):
        selection_of(space, UpdatePlan({"a.weight": None}))


def test_a_selection_of_another_length_is_an_error() -> None:
    space = update_space([LINEAR, HEAD], sizes(LINEAR, 8))
    with pytest.raises(ValueError, match="argument 2 is longer"):
        space.plan((0, 0))
