"""Splits a forward pass where it begins to learn: what comes before is computed once."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from pockmobile.capture.cut import after, before, crossing, first_use
from pockmobile.capture.forward import Forward
from pockmobile.capture.interpreter import ForwardInterpreter
from pockmobile.errors import PlanError

_REACH: Final = 8
"""Operators that the cut may lie before the first that learns: about a block, in which the
values are narrower in some places than in others."""
_ADVICE: Final = "train fewer layers, or leave the split out"


def split_forward(forward: Forward, trained: Iterable[str]) -> tuple[Forward, Forward]:
    """Returns what is computed once for an example, and the rest, which learns.

    The first returns the latents, the second takes them as its inputs `latent_0` and so on.
    The cut lies before the first operator that reads one of the parameters, at most a block
    before, where the latents are smallest.

    Args:
        forward: exported with example inputs.
        trained: names of parameters, at least one.

    Raises:
        PlanError: nothing but inputs comes before, or the latents have no row for each example.
    """
    encoder, rest = _cut(forward, _place(forward, first_use(forward, trained)))
    _check_rows(encoder)
    return encoder, rest


def _place(forward: Forward, first: int) -> int:
    nodes = list(forward.graph.graph.nodes)
    sizes: dict[int, int] = {}
    for place in range(first, max(0, first - _REACH), -1):
        if nodes[place].op in ("placeholder", "get_attr", "output"):
            continue
        values = crossing(forward, place)
        if any(node.op != "placeholder" for node in values):
            sizes[place] = sum(_num_bytes(node.meta["val"]) for node in values)
    if not sizes:
        raise PlanError(f"no layer before the first that learns is frozen; {_ADVICE}")
    # The last of the smallest: the more is computed once, the better.
    return min(sizes, key=lambda place: (sizes[place], -place))


def _is_close(value: Tensor, other: Tensor) -> bool:
    if not value.is_floating_point():
        return torch.equal(value, other)
    return torch.allclose(value, other, rtol=1e-4, atol=1e-5 * float(value.abs().max()))


def _num_bytes(value: Tensor) -> int:
    # A dynamic batch counts as one example.
    sizes = [size if isinstance(size, int) else 1 for size in value.shape]
    return int(torch.Size(sizes).numel()) * value.element_size()


def _cut(forward: Forward, place: int) -> tuple[Forward, Forward]:
    encoder = replace(forward, graph=before(forward, place))
    latents = {f"latent_{number}": value for number, value in enumerate(_outputs(encoder))}
    rest = replace(
        forward,
        graph=after(forward, place),
        inputs=latents,
        leaves=tuple(latents.values()),
    )
    return encoder, rest


def _check_rows(encoder: Forward) -> None:
    """The latents of the rows in another order must be the latents in that order."""
    if not _outputs(encoder):
        raise PlanError(f"no value of an example reaches the layers that learn; {_ADVICE}")
    turned = {name: value.flip(0) for name, value in encoder.inputs.items()}
    for value, other in zip(_outputs(encoder), _outputs(encoder, turned), strict=True):
        if value.shape[:1] != (encoder.batch_size,) or not _is_close(value.flip(0), other):
            raise PlanError(
                f"where the model begins to learn, a value of shape {list(value.shape)} has "
                f"no row for each of {encoder.batch_size} examples; {_ADVICE}"
            )


@torch.no_grad()
def _outputs(forward: Forward, inputs: dict[str, Tensor] | None = None) -> list[Tensor]:
    tensors = {**forward.parameters, **forward.buffers}
    given = inputs if inputs is not None else dict(forward.inputs)
    return [value.clone() for value in ForwardInterpreter(forward, tensors).outputs(given)]
