"""A small model, files of it, and a pickle that tells when it is executed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pockmobile.loading.models import LoadedModel, load_model

FACTORY = f"{__name__}:make_tied"


class Tied(nn.Module):
    """Tied embeddings, an optional mask by keyword, a constant and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(4))

    def forward(self, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        hidden = self.embed(ids) * self.scale
        return self.head(hidden if mask is None else hidden * mask[..., None])


def make_tied() -> nn.Module:
    return Tied()


def make_with_argument(width: int) -> nn.Module:
    return nn.Linear(width, width)


def make_string() -> str:
    return "no module"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def load(path: Path, model: str | None = None, *, trust: bool = False) -> LoadedModel:
    return load_model(path, model_factory=model, trust_pickle=trust)


def state_file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "state.pt"
    torch.save(content, path)
    return path
