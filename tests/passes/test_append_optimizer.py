"""Gradients become new parameters and new optimizer state."""

import pytest
import torch
from torch import Tensor

from pockmobile.errors import ModelError, UsageError
from pockmobile.graph import JointGraph, Role
from pockmobile.optim import SGD, AdamW, Lion, Momentum, Optimizer, clip_by_global_norm
from pockmobile.passes import AppendOptimizer, ApplyPlan, Canonicalize
from pockmobile.plan import Slice, UpdatePlan
from tests.passes.graphs import MODELS, apply, batch, canonical, listing, run, trace

PARAMETERS = {"a.w": torch.randn(3, 2), "a.b": torch.randn(3), "scale": torch.tensor(2.0)}
X = {"x": torch.randn(3, 2)}
LR = torch.tensor(0.1)


def step(w: Tensor, b: Tensor, scale: Tensor, x: Tensor) -> dict[str, Tensor]:
    return {
        "loss": (w * x).sum() + b.sum() * scale,
        "accuracy": x.mean(),
        # In another order than the parameters.
        "grad.scale": b.sum(),
        "grad.a.b": scale.expand(3).clone(),
        "grad.a.w": x.neg().neg(),
    }


def graph_of_step() -> JointGraph:
    return apply(Canonicalize(), trace(step, X, parameters=PARAMETERS))


def zeros(graph: JointGraph) -> dict[str, Tensor]:
    """The optimizer's state at the start."""
    nodes = graph.input_nodes(Role.OPTIMIZER)
    return {name: torch.zeros(node.meta["val"].shape) for name, node in nodes.items()}


def test_sgd_in_writing() -> None:
    graph = trace(
        lambda w, x: {"loss": (w * x).sum(), "grad.w": x.neg()},
        X,
        parameters={"w": torch.randn(3, 2)},
    )
    changed = apply(AppendOptimizer(SGD()), graph)
    assert listing(changed) == [
        "mul = mul(w, x)",
        "sum_1 = sum(mul)",
        "neg = neg(x)",
        "view = view(lr, [1])",
        "mul_1 = mul(view, neg)",
        "sub = sub(w, mul_1)",
        "return sum_1, sub",
    ]


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (SGD(), []),
        (Momentum(), ["momentum"]),
        (AdamW(), ["exp_avg", "exp_avg_sq"]),
        (Lion(), ["exp_avg"]),
    ],
)
def test_ports_are_parameters_then_state_then_batch_then_rate(
    optimizer: Optimizer, slots: list[str]
) -> None:
    graph = apply(AppendOptimizer(optimizer), graph_of_step())
    state = [*PARAMETERS, *(f"{name}.{slot}" for name in PARAMETERS for slot in slots)]
    state += ["step"] if optimizer.counts_steps else []
    assert [port.name for port in graph.inputs] == [*state, "x", "lr"]
    assert [port.name for port in graph.outputs] == ["loss", *state]
    assert graph.output_nodes(Role.METRIC) == {}
    for port, node in zip(graph.inputs, graph.placeholders, strict=True):
        if port.role is Role.OPTIMIZER and port.slot != "step":
            assert node.meta["val"].shape == PARAMETERS[port.parameter].shape
    assert graph.initial.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize(
    "optimizer", [SGD(), Momentum(), AdamW(), Lion()], ids=lambda o: o.name
)
def test_the_update_is_the_optimizers(optimizer: Optimizer, clip_norm: float | None) -> None:
    before = graph_of_step()
    graph = apply(AppendOptimizer(optimizer, clip_norm), before)
    found = run(graph, {**X, "lr": LR, **zeros(graph)})
    results = run(before, X)
    assert torch.equal(found["loss"], results["loss"])
    grads = [results[f"grad.{name}"] for name in PARAMETERS]
    if clip_norm is not None:
        grads = clip_by_global_norm(grads, clip_norm)
    for grad, (name, parameter) in zip(grads, PARAMETERS.items(), strict=True):
        empty = [torch.zeros_like(parameter)] * len(optimizer.slots)
        update = optimizer.update(parameter, grad, empty, LR, torch.ones(1))
        expected = update.parameter.reshape(parameter.shape)
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-7)
        assert found[name].shape == parameter.shape


def test_the_counter_counts() -> None:
    graph = apply(AppendOptimizer(AdamW()), graph_of_step())
    values = {**X, "lr": LR, **zeros(graph), "step": torch.tensor([4.0])}
    assert run(graph, values)["step"].tolist() == [5.0]


def test_a_slice_has_a_slice_of_state() -> None:
    plan = UpdatePlan({"a.w": Slice(1, 0, 1)})
    graph = apply(AppendOptimizer(Momentum()), apply(ApplyPlan(plan), graph_of_step()))
    found = run(graph, {**X, "lr": LR, **zeros(graph)})
    assert found["a.w"].shape == found["a.w.momentum"].shape == (3, 1)


def test_options_name_the_constants() -> None:
    options = AppendOptimizer(Momentum(momentum=0.5), 1.0).options()
    constants = {"name": "momentum", "momentum": 0.5, "weight_decay": 0.0, "nesterov": False}
    assert options == {"optimizer": constants, "clip_norm": 1.0}


def test_a_graph_without_gradients_stays_the_same() -> None:
    graph = graph_of_step().keep_outputs(lambda port: port.role is Role.LOSS)
    assert apply(AppendOptimizer(SGD()), graph) is graph


@pytest.mark.parametrize(
    ("name", "optimizer", "role"),
    [("lr", SGD(), "learning rate"), ("step", AdamW(), "optimizer")],
)
def test_an_input_with_a_name_of_ours_is_refused(
    name: str, optimizer: Optimizer, role: str
) -> None:
    graph = trace(
        lambda w, x: {"loss": (w * x).sum(), "grad.w": x.neg()},
        {name: X["x"]},
        parameters={"w": torch.randn(3, 2)},
    )
    with pytest.raises(
        ModelError,
        match=f"parameter named '{name}', which is the name of the program's {role}",
    ):
        apply(AppendOptimizer(optimizer), graph)


def test_a_norm_that_is_no_norm_is_refused() -> None:
    with pytest.raises(UsageError, match=r"clip_norm must be above 0, found -1\.0"):
        apply(AppendOptimizer(SGD(), -1.0), graph_of_step())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_trained(name: str) -> None:
    joint = canonical(name)
    every = {port.parameter: None for port in joint.outputs if port.parameter}
    graph = apply(AppendOptimizer(SGD()), apply(ApplyPlan(UpdatePlan(every)), joint))
    values = {**batch(name), "lr": LR}
    losses = []
    for _ in range(4):
        results = run(graph, values)
        losses.append(results.pop("loss").item())
        values |= results
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.99 * losses[0]
