"""Small models, losses and files for the command `export`, and what it wrote, opened."""

from pathlib import Path
from typing import Final

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from pockmobile import Session, export

ENCODER: Final = f"{__name__}:Encoder"
CLASSIFIER: Final = f"{__name__}:Classifier"
NUM_TOKENS: Final = 11
NUM_CLASSES: Final = 3


class Classifier(nn.Module):
    """Two blocks and a head over 6 features."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(6, NUM_CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        for block in self.blocks:
            features = block(features)
        return self.head(features)


class Encoder(nn.Module):
    """BERT's interface in small: ids and a mask, by keyword if one likes, to a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_TOKENS, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        hidden = self.embed(input_ids)
        if attention_mask is not None:
            hidden = self.layer(hidden, src_key_padding_mask=attention_mask == 0)
        return {"logits": self.head(hidden[:, 0]), "hidden": hidden}


class Broken(nn.Module):
    """Fails whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, features: Tensor) -> Tensor:
        raise ValueError("no features today")


class Scorer(nn.Module):
    """One logit for each of two questions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 2)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features)


class Tokens(nn.Module):
    """The smallest language model: tied embeddings and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_TOKENS, 4)
        self.head = nn.Linear(4, NUM_TOKENS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


def weighted_loss(output: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """A loss with two targets."""
    return ((output - target).abs() * weight).mean()


def vector_loss(output: Tensor, target: Tensor) -> Tensor:
    """No loss: a value for each example."""
    return (output - target).abs().mean(1)


def save_state(path: Path, model: nn.Module) -> Path:
    """Writes the weights, as safetensors where the name says so; a tied weight once."""
    state = model.state_dict()
    if path.suffix == ".safetensors":
        first = {value.data_ptr(): name for name, value in reversed(state.items())}
        safetensors.torch.save_file({name: state[name] for name in first.values()}, path)
    else:
        torch.save(state, path)
    return path


def run_export(capsys: pytest.CaptureFixture[str], *arguments: object) -> Session:
    """Runs the command and opens the program that it wrote, which its output names."""
    assert export.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    output, errors = capsys.readouterr()
    # Not a terminal: no progress; and nothing of what libraries have to say.
    assert errors == ""
    *report, last = output.splitlines()
    assert report[0].startswith("model ")
    return Session(last.removeprefix("wrote ").rpartition(" in ")[0])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> str:
    """Runs the command, which must fail with one line and write nothing; returns the line."""
    folder = Path(str(arguments[0])).parent
    before = sorted(folder.iterdir())
    assert export.main([str(argument) for argument in arguments]) == status
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert sorted(folder.iterdir()) == before
    return errors
