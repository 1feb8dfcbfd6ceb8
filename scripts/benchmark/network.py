"""Writes a network so that a peer can build it in its own terms, knowing nothing of PyTorch.

A file of safetensors: the tensors, and in the metadata the operators in order, as JSON. Each
operator has a name, the names of what it reads (inputs, tensors or former results), the name
of its result, and attributes. `scripts/peer_workers/network.py` says what each one means.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pockmobile.capture import describe_layers, export_forward
from pockmobile.models.mobilenet_v2 import InvertedResidual, MobileNetV2
from pockmobile.models.transformer_lm import TransformerBlock, TransformerLM
from pockmobile.plan import resolve_plan
from scripts.benchmark.variants import Exported, VariantError

INPUTS: Final = "inputs"
TARGETS: Final = "targets"


def export_network(model: nn.Module, batch: tuple[Tensor, Tensor], plan: str) -> Exported:
    """Returns the file of a network that trains a plan of whole parameters.

    Args:
        model: in evaluation mode, a `MobileNetV2` or a `TransformerLM`.
        batch: example inputs and targets.
        plan: a preset.

    Raises:
        VariantError: the model is another, or the plan trains parts of parameters.
    """
    layers = describe_layers(export_forward(model, (batch[0],)))
    update = resolve_plan(plan, layers).update
    cut = [name for name, part in update.items() if part is not None]
    if cut:
        raise VariantError(f"the plan {plan} trains a part of {cut[0]}: peers train it whole")
    writer = _Writer(model, frozenset(update))
    if isinstance(model, MobileNetV2):
        logits = _mobilenet(writer, model)
    elif isinstance(model, TransformerLM):
        logits = _language_model(writer, model)
    else:
        raise VariantError(f"peers are not told how to build a {type(model).__name__}")
    writer.add("cross_entropy", logits, TARGETS)
    parts = dict.fromkeys(_by_first_use(writer.operators, frozenset(update)))
    network = {"trained": list(parts), "operators": writer.operators}
    buffer = save(writer.tensors, {"network": json.dumps(network)})
    return Exported(buffer, None, None, parts)


def _by_first_use(
    operators: Sequence[Mapping[str, Any]], trained: frozenset[str]
) -> Sequence[str]:
    """Returns what is trained as the forward pass meets it, what scales a weight before it.

    A program that updates in this order, in place, computes each gradient from old values:
    all that come before a layer in the backward pass have gradients when it is updated.
    """
    names = [name for operator in operators for name in reversed(operator["inputs"])]
    return [name for name in dict.fromkeys(names) if name in trained]


@final
@dataclass
class _Writer:
    """Gathers operators, and the tensors that they read."""

    model: nn.Module
    trained: frozenset[str]
    operators: list[Mapping[str, Any]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def add(self, kind: str, *inputs: str, **attributes: float) -> str:
        """Adds an operator and returns the name of its result."""
        output = f"{kind}.{len(self.operators)}"
        self.operators.append(
            {"kind": kind, "inputs": inputs, "output": output, "attributes": attributes}
        )
        return output

    def names_of(self, value: Tensor) -> list[str]:
        """Returns the names of a parameter: several, if it is tied."""
        names = self.model.named_parameters(remove_duplicate=False)
        return [name for name, other in names if other is value]

    def is_trained(self, value: Tensor) -> bool:
        """Whether the plan trains a parameter."""
        return not self.trained.isdisjoint(self.names_of(value))

    def parameter(self, value: Tensor) -> str:
        """Adds a parameter and returns its name: the same one for another use of it."""
        names = self.names_of(value)
        return self.constant(next((n for n in names if n in self.trained), names[0]), value)

    def constant(self, name: str, value: Tensor) -> str:
        """Adds a tensor and returns its name."""
        self.tensors[name] = value.detach().contiguous().clone()
        return name

    def convolution(self, x: str, conv: nn.Conv2d, norm: nn.BatchNorm2d, name: str) -> str:
        """Adds a convolution with the frozen norm behind it folded into its weights.

        What is frozen is folded here; where the weight or the norm learn, by operators.
        """
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        scale = (variance + norm.eps).rsqrt()
        if any(self.is_trained(value) for value in (conv.weight, norm.weight, norm.bias)):
            gamma = self.parameter(norm.weight)
            scales = self.constant(f"{name}.scale", scale)
            weight = self.add("fold_weight", self.parameter(conv.weight), gamma, scales)
            shifts = self.constant(f"{name}.shift", mean * scale)
            bias = self.add("fold_bias", self.parameter(norm.bias), gamma, shifts)
        else:
            factor = norm.weight * scale
            weight = self.constant(f"{name}.weight", conv.weight * factor[:, None, None, None])
            bias = self.constant(f"{name}.bias", norm.bias - mean * factor)
        return self.add(
            "convolution",
            *(x, weight, bias),
            stride=conv.stride[0],
            padding=int(conv.padding[0]),
            groups=conv.groups,
        )

    def linear(self, x: str, layer: nn.Linear) -> str:
        """Adds a linear layer; a bias that it lacks is one of zeros."""
        weight = self.parameter(layer.weight)
        if layer.bias is not None:
            bias = self.parameter(layer.bias)
        else:
            bias = self.constant(f"{weight}.zeros", torch.zeros(layer.out_features))
        return self.add("linear", x, weight, bias)

    def norm(self, x: str, layer: nn.LayerNorm) -> str:
        """Adds a layer norm."""
        names = [self.parameter(value) for value in (layer.weight, layer.bias)]
        return self.add("layer_norm", x, *names, epsilon=layer.eps)


def _mobilenet(writer: _Writer, model: MobileNetV2) -> str:
    x = INPUTS
    for index, layer in enumerate(model.features):
        name = f"features.{index}"
        if isinstance(layer, InvertedResidual):
            x = _inverted_residual(writer, layer, x, name)
        else:
            assert isinstance(layer, nn.Sequential)
            x = _activated(writer, layer, x, name)
    return writer.linear(writer.add("mean_pool", x), _linear(model.classifier[1]))


def _inverted_residual(writer: _Writer, layer: InvertedResidual, x: str, name: str) -> str:
    *activated, conv, norm = layer.conv
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    y = x
    for index, part in enumerate(activated):
        assert isinstance(part, nn.Sequential)
        y = _activated(writer, part, y, f"{name}.conv.{index}")
    y = writer.convolution(y, conv, norm, f"{name}.conv")
    return writer.add("add", x, y) if layer.has_shortcut else y


def _activated(writer: _Writer, layer: nn.Sequential, x: str, name: str) -> str:
    conv, norm, _ = layer
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return writer.add("relu6", writer.convolution(x, conv, norm, name))


def _language_model(writer: _Writer, model: TransformerLM) -> str:
    # The batch's rows of tokens fill the context, as all works' do.
    length, width = model.positions.shape
    x = writer.add("embedding", INPUTS, writer.parameter(model.embedding.weight))
    positions = writer.parameter(model.positions)
    x = writer.add("add_positions", x, positions, length=length, width=width)
    for block in model.blocks:
        assert isinstance(block, TransformerBlock)
        x = _block(writer, block, x, length)
    return writer.linear(writer.norm(x, model.norm), model.head)


def _block(writer: _Writer, block: TransformerBlock, x: str, length: int) -> str:
    attention = block.attention
    normed = writer.norm(x, block.attention_norm)
    three = [
        writer.linear(normed, layer)
        for layer in (attention.query, attention.key, attention.value)
    ]
    heads = attention.num_heads
    width = attention.query.out_features // heads
    y = writer.add("causal_attention", *three, length=length, heads=heads, width=width)
    x = writer.add("add", x, writer.linear(y, attention.output))
    first, _, second = block.mlp
    y = writer.linear(writer.norm(x, block.mlp_norm), _linear(first))
    y = writer.linear(writer.add("gelu", y), _linear(second))
    return writer.add("add", x, y)


def _linear(layer: nn.Module) -> nn.Linear:
    assert isinstance(layer, nn.Linear)
    return layer
