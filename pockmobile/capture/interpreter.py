"""Runs the exported forward pass on given tensors, under the rules of fine-tuning."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from pockmobile.capture.forward import Forward
from pockmobile.capture.semantics import RULES
from pockmobile.errors import ModelError


class ForwardInterpreter(fx.Interpreter):
    """Runs a forward pass on `tensors`: its parameters and buffers, by canonical name.

    They are read anew in every run, so that the caller may replace them in between.
    """

    def __init__(self, forward: Forward, tensors: Mapping[str, Tensor]) -> None:
        """Prepares the run."""
        super().__init__(forward.graph)
        self._forward = forward
        self._tensors = tensors

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:
        """Returns the tensor of that name."""
        return self._tensors[self._forward.tensors[target]]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operator, or what stands for it in fine-tuning."""
        return RULES.get(target, target)(*args, **kwargs)

    def outputs(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Returns the tensors that the model returns, at least one.

        Args:
            inputs: the tensors among the inputs, in the order of the forward pass.

        Raises:
            ModelError: it returns none.
        """
        leaves = self._forward.with_inputs(inputs)
        result = self.run(*leaves, enable_io_processing=False)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not outputs:
            raise ModelError("the model returns no tensor; expected its outputs (logits)")
        return outputs
