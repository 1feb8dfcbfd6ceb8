"""A trained embedding costs the rows that a batch touches, and its table once."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pockmobile
from pockmobile.plan import UpdatePlan
from pockmobile.session import Session

_WORDS, _WIDTH, _LENGTH, _ROWS = 50_000, 16, 8, 4
_TABLE_BYTES = 4 * _WORDS * _WIDTH


class _Tagger(nn.Module):
    """An embedding of many words, one block, and a head of few classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, _WIDTH)
        self.block = nn.TransformerEncoderLayer(_WIDTH, 2, 32, batch_first=True)
        self.head = nn.Linear(_WIDTH, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.words(tokens)))


def _batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(_WORDS, (_ROWS, _LENGTH), generator=generator)
    tokens[0, :3] = 7  # A word that comes more than once.
    return tokens, torch.randint(5, (_ROWS, _LENGTH), generator=generator)


def _compiled(model: nn.Module, target: str, *, with_words: bool) -> pockmobile.Program:
    names = [name for name, _ in model.named_parameters() if not name.startswith("words")]
    trained = [*names, *(["words.weight"] if with_words else [])]
    plan = UpdatePlan(dict.fromkeys(trained))
    return pockmobile.compile(model, (_batch(0)[0],), plan=plan, target=target)


@pytest.mark.parametrize("target", ["portable", "xnnpack"])
def test_a_table_is_planned_once_and_trains_by_rows(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _Tagger().eval()
    frozen = _compiled(model, target, with_words=False).manifest.methods["train_step"]
    program = _compiled(model, target, with_words=True)
    trained = program.manifest.methods["train_step"]
    assert trained.planned_bytes < 2 * frozen.planned_bytes + _TABLE_BYTES
    program.save(tmp_path / "tagger.pte")
    session = Session(tmp_path / "tagger.pte")
    start = session.state["words.weight"]
    tokens, labels = _batch(1)
    session.step(tokens, labels, lr=0.5)
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), labels.flatten())
    (grad,) = torch.autograd.grad(loss, [model.words.weight])
    change = session.state["words.weight"] - start
    torch.testing.assert_close(change, -0.5 * grad, rtol=1e-4, atol=1e-6)
    assert int(change.any(1).sum()) == len(tokens.unique())
