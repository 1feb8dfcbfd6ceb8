"""Captures models in tests."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pockmobile.capture import capture_joint, export_forward
from pockmobile.graph import JointGraph
from pockmobile.loss import CrossEntropy, Loss

LABELS: Final = torch.tensor([0, 2])


def joint_of(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    target: Tensor,
    loss: Loss | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> JointGraph:
    forward = export_forward(model, args, kwargs)
    return capture_joint(forward, forward.inputs, {"target": target}, loss or CrossEntropy())


class Bert(nn.Module):
    """Ids and a mask by keyword; a buffer of the name of an input."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8, padding_idx=0)
        self.kinds = nn.Embedding(2, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.register_buffer("mask", torch.ones(8))

    def forward(self, ids: Tensor, mask: Tensor, kinds: Tensor) -> dict[str, Tensor]:
        x = self.words(ids) + self.kinds(kinds)
        x = self.layer(x, src_key_padding_mask=mask == 0) * self.mask
        return {"logits": self.head(x[:, 0]), "states": x}


def bert_batch() -> dict[str, Tensor]:
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    return {"kinds": torch.randint(2, (2, 6)), "ids": torch.randint(11, (2, 6)), "mask": mask}
