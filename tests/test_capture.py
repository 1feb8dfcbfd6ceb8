"""The joint graph computes the model's loss and gradients, as fine-tuning means them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as func

from pockmobile import models
from pockmobile.capture import (
    capture_predict,
    export_forward,
    index_limits,
    model_output,
)
from pockmobile.errors import ModelError
from pockmobile.graph import Role
from pockmobile.loss import NextToken
from pockmobile.models.llama import Llama
from tests.captured import LABELS, Bert, bert_batch, joint_of
from tests.passes.graphs import run, small_cnn, small_lm


def eager(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    """The loss and the gradients by autograd, by the names of the graph's outputs."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    value = loss(model)
    grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    named = zip(parameters, grads, strict=True)
    return {"loss": value.detach(), **{f"grad.{n}": g for n, g in named if g is not None}}


def assert_matches(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    metrics = ("num_correct", "num_counted")
    assert {name for name in found if name not in metrics} == set(expected)
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * scale, msg=name)


def images(num_classes: int, size: int = 32) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(2, 3, size, size), torch.randint(num_classes, (2,)))


def small_llama() -> Llama:
    return Llama(
        num_tokens=24, context=6, width=8, hidden=12, num_blocks=2, num_heads=4, num_key_heads=2
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "mlp": (models.mlp, lambda: (torch.randn(3, 16), torch.randint(4, (3,)))),
    "residual_cnn": (small_cnn, images(4, 12)),
    "mobilenet_v1": (lambda: models.mobilenet_v1(0.25, 5), images(5)),
    "mobilenet_v2": (lambda: models.mobilenet_v2(0.35, 5), images(5)),
    "resnet18": (lambda: models.resnet18(5), images(5)),
    "lm": (small_lm, lambda: (torch.randint(24, (2, 6)), torch.randint(24, (2, 6)))),
    "llama": (small_llama, lambda: (torch.randint(24, (2, 6)), torch.randint(24, (2, 6)))),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_autograd_on_fresh_inputs(name: str) -> None:
    torch.manual_seed(1)
    make_model, make_batch = MODELS[name]
    model = make_model().eval()
    inputs, target = make_batch()
    graph = joint_of(model, (inputs,), target)
    (input_name,) = graph.input_nodes(Role.INPUT)
    inputs, target = make_batch()
    found = run(graph, {input_name: inputs, "target": target})
    logits = model(inputs)
    expected = eager(
        model, lambda model: func.cross_entropy(model(inputs).flatten(0, -2), target.flatten())
    )
    assert_matches(found, expected)
    assert found["num_correct"] == (logits.argmax(-1) == target).sum()
    assert found["num_counted"] == target.numel()


class Normed(nn.Module):
    """BatchNorm, dropout and an in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.9)
        self.head = nn.Linear(4, 3)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.relu(self.norm(self.conv(x))).mean((2, 3))))


IMAGES = torch.randn(2, 3, 8, 8)


def saved(program: ExportedProgram, path: Path) -> ExportedProgram:
    torch.export.save(program, path)
    return torch.export.load(path)


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_is_frozen_and_dropout_is_off_however_exported(
    training: bool, decomposed: bool, tmp_path: Path
) -> None:
    model = Normed().train(training)
    program = torch.export.export(model, (IMAGES,), strict=False)
    if decomposed:
        program = program.run_decompositions({} if training else None)
    program = saved(program, tmp_path / "model.pt2")
    buffers = {name: value.clone() for name, value in program.named_buffers()}
    graph = joint_of(program, (IMAGES,), LABELS)
    model.eval()
    expected = eager(model, lambda model: func.cross_entropy(model(IMAGES), LABELS))
    assert_matches(run(graph, {"x": IMAGES, "target": LABELS}), expected)
    # Neither the statistics nor the count of batches moved.
    for name, value in program.named_buffers():
        assert torch.equal(value, buffers[name]), name


def test_a_module_keeps_its_mode() -> None:
    model = Normed().train()
    model.norm.eval()
    export_forward(model, (IMAGES,))
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes == {
        "": True, "conv": True, "norm": False, "relu": True, "dropout": True, "head": True,
    }  # fmt: skip
    with pytest.raises(ModelError):
        export_forward(model, (IMAGES[0, 0],))
    assert model.training


def test_statistics_come_from_the_module_that_is_captured() -> None:
    model = Normed()
    forward = export_forward(model, (IMAGES,))
    model.eval()
    torch.testing.assert_close(model_output(forward, forward.inputs), model(IMAGES))
    predict = capture_predict(forward, {"x": IMAGES})
    torch.testing.assert_close(run(predict, {"x": IMAGES})["output"], model(IMAGES))


def test_a_channels_last_model_computes_the_same() -> None:
    model = Normed().eval().to(memory_format=torch.channels_last)
    graph = joint_of(model, (IMAGES.to(memory_format=torch.channels_last),), LABELS)
    expected = eager(model, lambda model: func.cross_entropy(model(IMAGES), LABELS))
    assert_matches(run(graph, {"x": IMAGES, "target": LABELS}), expected)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).tanh())


@pytest.mark.parametrize("is_archive", [False, True])
def test_a_tied_weight_gets_the_sum_of_both_gradients(is_archive: bool, tmp_path: Path) -> None:
    model, tokens = Tied(), torch.randint(7, (2, 5))
    captured: nn.Module | ExportedProgram = model
    if is_archive:
        program = torch.export.export(model, (tokens,), strict=False)
        captured = saved(program, tmp_path / "model.pt2")
    graph = joint_of(captured, (tokens,), tokens, NextToken())
    (parameter,) = graph.input_nodes(Role.PARAMETER)
    values = {"tokens": tokens, "target": tokens}
    found = run(graph, values)[f"grad.{parameter}"]

    weight = model.embedding.weight.detach()
    read, write = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = func.linear(func.embedding(tokens, read).tanh(), write)
    loss = func.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    both = torch.autograd.grad(loss, [read, write])
    torch.testing.assert_close(found, both[0] + both[1])
    assert all(grad.abs().max() > 0 for grad in both)


@pytest.mark.parametrize("is_archive", [False, True])
def test_keyword_inputs_in_any_order(is_archive: bool) -> None:
    torch.manual_seed(0)
    model, batch = Bert(), bert_batch()
    captured: nn.Module | ExportedProgram = model
    if is_archive:
        ordered = {name: batch[name] for name in ("ids", "mask", "kinds")}
        captured = torch.export.export(model, (), ordered, strict=False)
    graph = joint_of(captured, (), LABELS, kwargs=batch)
    assert set(graph.input_nodes(Role.INPUT)) == {"ids", "mask", "kinds"}
    fresh = bert_batch()
    found = run(graph, {**fresh, "target": LABELS})
    model.eval()
    expected = eager(model, lambda model: func.cross_entropy(model(**fresh)["logits"], LABELS))
    assert_matches(found, expected)


def test_an_input_keeps_the_name_of_a_builtin() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, input: Tensor, type: Tensor) -> Tensor:
            return self.linear(input) + type

    inputs = {"input": torch.randn(4, 3), "type": torch.randn(4, 2)}
    for args, kwargs in ((tuple(inputs.values()), {}), ((), inputs)):
        graph = joint_of(Model(), args, torch.zeros(4, dtype=torch.int64), kwargs=kwargs)
        assert list(graph.input_nodes(Role.INPUT)) == ["input", "type"]


def test_positional_and_keyword_inputs_together() -> None:
    model, batch = Bert(), bert_batch()
    ids = batch.pop("ids")
    forward = export_forward(model, (ids,), batch)
    assert set(forward.inputs) == {"ids", "mask", "kinds"}
    for name, value in {**batch, "ids": ids}.items():
        assert forward.inputs[name] is value


def test_every_output_is_predicted() -> None:
    model, batch = Bert().eval(), bert_batch()
    forward = export_forward(model, (), batch)
    predict = capture_predict(forward, forward.inputs)
    assert [port.name for port in predict.outputs] == ["output_0", "output_1"]
    found, expected = run(predict, batch), model(**batch)
    torch.testing.assert_close(found["output_0"], expected["logits"])
    torch.testing.assert_close(found["output_1"], expected["states"])


def test_limits_of_inputs_that_index_a_table() -> None:
    forward = export_forward(Bert(), (), bert_batch())
    graph = capture_predict(forward, forward.inputs)
    assert index_limits(graph) == {"ids": 11, "kinds": 2}


def test_limits_are_the_smallest_table_and_pass_views_and_casts_only() -> None:
    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large, self.small = nn.Embedding(9, 2), nn.Embedding(5, 2)

        def forward(self, both: Tensor, shifted: Tensor, cast: Tensor) -> Tensor:
            x = self.large(both) + self.small(both.unsqueeze(0)[0, :, 1:2].long())
            return x + self.small(shifted + 1) + self.small(cast.long())

    args = (torch.zeros(1, 3).long(), torch.zeros(1, 3).long(), torch.zeros(1, 3).int())
    forward = export_forward(Tables(), args)
    limits = index_limits(capture_predict(forward, forward.inputs))
    assert limits == {"both": 5, "cast": 5}


def test_ignored_labels_count_for_nothing() -> None:
    model = models.mlp().eval()
    x, target = torch.randn(4, 16), torch.tensor([1, -100, 3, -100])
    graph = joint_of(model, (x,), target)
    found = run(graph, {"features": x, "target": target})
    kept = target != -100
    expected = eager(model, lambda model: func.cross_entropy(model(x[kept]), target[kept]))
    assert_matches(found, expected)
    assert found["num_counted"] == 2
    padding = run(graph, {"features": x, "target": torch.full((4,), -100)})
    assert padding["loss"] == 0
    assert all(not value.any() for name, value in padding.items() if name.startswith("grad"))


def test_an_unused_parameter_has_no_gradient() -> None:
    model = models.mlp()
    model.unused = nn.Linear(3, 3)
    graph = joint_of(model, (torch.randn(2, 16),), LABELS)
    assert "unused.weight" not in {port.parameter for port in graph.outputs}
    assert "head.weight" in {port.parameter for port in graph.outputs}


def test_backward_operators_belong_to_the_module_of_their_forward_operators() -> None:
    graph = joint_of(small_cnn(), (torch.randn(2, 3, 12, 12),), LABELS)
    found = [
        node.meta["module"]
        for node in graph.nodes
        if getattr(node.target, "_opname", "") == "convolution_backward"
    ]
    assert found == [
        *(f"blocks.{block}.conv{index}" for block in (1, 0) for index in (3, 2, 1)),
        "stem",
    ]
