"""Training through the program on real weights and real data, beside eager PyTorch."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as func

import pockmobile
from pockmobile.session import Session
from scripts.realdata import DataMissing, load_stories260k
from scripts.trashnet import train_both

# Written for this test: what the model, trained on tales for children, has not read.
TEXT = """Mia had a small red kite. One windy day she took it to the hill behind her house.
The kite went up and up, and it danced in the sky. Then the string broke! Mia was sad. She ran
after the kite, past the pond and the old barn. A boy named Ben saw the kite in a tall tree.
"Do not cry," said Ben. "I can climb." He went up the tree and came down with the kite. Mia
smiled and gave him a hug. "Thank you, Ben," she said. They tied a new string and flew the kite
together until the sun went down. After that day Mia and Ben were best friends."""


def test_stories_are_learnt_as_in_eager(tmp_path: Path) -> None:
    try:
        model, tokenizer = load_stories260k()
    except DataMissing as missing:
        pytest.skip(str(missing))
    tokens = torch.tensor(tokenizer.encode(TEXT))
    rows = tokens[: len(tokens) // 33 * 33].reshape(-1, 33)
    inputs, labels = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    program = pockmobile.compile(model, (inputs,), plan="last:1")
    program.save(tmp_path / "stories.pte")
    session = Session(tmp_path / "stories.pte")
    names = {entry.parameter for entry in program.manifest.parameters}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    before = session.evaluate(inputs, labels).loss
    for _ in range(50):
        optimizer.zero_grad()
        loss = func.cross_entropy(model(inputs).flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step()
        assert session.step(inputs, labels, lr=0.05) == pytest.approx(loss.item(), rel=1e-3)
    assert session.evaluate(inputs, labels).loss < 0.8 * before


def test_trashnet_is_learnt_as_in_eager() -> None:
    try:
        found = train_both(plan="sparse:6:6", epochs=3, size=96, lr=0.001)
    except DataMissing as missing:
        pytest.skip(str(missing))
    assert found.before < 0.4
    assert found.ours > 0.6
    assert abs(found.ours - found.eager) <= 0.01
