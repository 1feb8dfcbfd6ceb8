"""Makes the cost model of a forward pass and a loss."""

from torch import Tensor

from pockmobile.capture import Forward, capture_joint, model_output, named_targets
from pockmobile.cost.model import CostModel
from pockmobile.cost.option_graph import option_graph
from pockmobile.loss import Loss
from pockmobile.optim import Optimizer
from pockmobile.space import UpdateSpace
from pockmobile.targets import Target


def cost_model(
    forward: Forward,
    loss: Loss,
    space: UpdateSpace,
    *,
    optimizer: Optimizer,
    target: Target,
    clips: bool = False,
    example_targets: tuple[Tensor, ...] | None = None,
) -> CostModel:
    """Returns what predicts the cost of every plan of a space.

    Args:
        forward: the exported forward pass, whose batch is that of a training step.
        loss: the loss of a step.
        space: the plans.
        optimizer: the optimizer of a step.
        target: where it will run.
        clips: whether gradients are clipped by their joint norm.
        example_targets: targets of the batch; made by the loss if left out.

    Raises:
        ModelError: the loss does not fit the model's outputs.
    """
    output = model_output(forward, forward.inputs)
    targets = named_targets(example_targets, loss, output)
    joint = capture_joint(forward, forward.inputs, targets, loss)
    return CostModel(option_graph(joint, space, target), optimizer, target, clips=clips)
