"""Programs whose logits are never whole train as those whose logits are, and as eager does."""

from pathlib import Path
from typing import Final

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import pockmobile
from pockmobile.errors import UsageError
from pockmobile.models.llama import Llama

NUM_TOKENS: Final = 1024
LENGTH: Final = 32
BATCH: Final = 2
WIDTH: Final = 128
LOGITS: Final = 4 * BATCH * LENGTH * NUM_TOKENS
CHUNK: Final = LOGITS * WIDTH // NUM_TOKENS


def llama(*, is_tied: bool) -> Llama:
    torch.manual_seed(0)
    return Llama(
        num_tokens=NUM_TOKENS,
        context=LENGTH,
        width=16,
        hidden=24,
        num_blocks=1,
        num_heads=2,
        num_key_heads=1,
        is_tied=is_tied,
    )


def tokens() -> tuple[Tensor, Tensor]:
    """Returns instructions with answers: the prompts, of two lengths, do not count."""
    found = torch.randint(
        NUM_TOKENS, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1)
    )
    target = found.clone()
    target[0, :10], target[1, :5] = -100, -100
    return found, target


def masked_loss(logits: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def compiled(
    model: nn.Module, chunk: int | None, plan: str, target: str = "xnnpack", held: str = "fp32"
) -> pockmobile.Program:
    inputs, labels = tokens()
    return pockmobile.compile(
        model,
        (inputs,),
        (labels,),
        loss="next_token",
        plan=plan,
        target=target,
        frozen_weights=held,
        loss_chunk=chunk,
    )


@pytest.mark.parametrize(
    ("is_tied", "plan", "target"),
    [
        (True, "lora:2", "xnnpack"),
        (True, "full", "xnnpack"),
        pytest.param(False, "full", "portable", marks=pytest.mark.slow),
        pytest.param(False, "lora:2", "xnnpack", marks=pytest.mark.slow),
        pytest.param(False, "last:1", "xnnpack", marks=pytest.mark.slow),
        pytest.param(True, "lora:2", "portable", marks=pytest.mark.slow),
    ],
)
def test_prompts_are_masked_and_training_is_that_of_eager(
    is_tied: bool, plan: str, target: str, tmp_path: Path
) -> None:
    model = llama(is_tied=is_tied)
    program = compiled(model, WIDTH, plan, target)
    program.save(tmp_path / "llama.pte")
    session = pockmobile.Session(tmp_path / "llama.pte", threads=1)
    inputs, labels = tokens()
    logits = model(inputs)
    found = session.evaluate(inputs, labels)
    assert found.loss == pytest.approx(masked_loss(logits, labels).item(), rel=1e-5)
    assert found.metrics["num_counted"] == LENGTH - 10 + LENGTH - 5
    best = logits[:, :-1].argmax(-1)
    assert found.metrics["num_correct"] == (best == labels[:, 1:]).sum()
    if plan.startswith("lora"):
        losses = [session.step(inputs, labels, lr=1.0) for _ in range(10)]
        assert losses[0] == pytest.approx(masked_loss(logits, labels).item(), rel=1e-5)
        assert losses[-1] < losses[0]
        return
    masked_loss(logits, labels).backward()
    session.step(inputs, labels, lr=0.5)
    for name, value in session.state.items():
        start = model.get_parameter(name)
        torch.testing.assert_close(
            value, start.detach() - 0.5 * start.grad, atol=1e-6, rtol=1e-5
        )


def test_memory_falls_by_the_logits_and_int8_learns_as_float32(tmp_path: Path) -> None:
    model = llama(is_tied=True)
    nn.init.normal_(model.embedding.weight, std=0.3)
    inputs, labels = tokens()
    whole, cut, rounded = (
        compiled(model, chunk, "lora:2", held=held)
        for chunk, held in ((0, "fp32"), (WIDTH, "fp32"), (WIDTH, "int8"))
    )
    for program in (cut, rounded):
        assert program.manifest.methods["train_step"].num_partitions == 1
        # Whole: probabilities, and one-hot labels or logits beside them. Cut: a few values of a
        # run, of which the next is made while the last is still there.
        for name, saved in (
            ("train_step", 2 * LOGITS - 6 * CHUNK),
            ("evaluate", LOGITS - 6 * CHUNK),
        ):
            assert needs(whole, name) - needs(program, name) > saved
    # The table and the head, each a quarter of what it was, and a scale for each 16 numbers.
    assert rounded.manifest.frozen_bytes < 0.45 * cut.manifest.frozen_bytes
    curves = []
    for program in (cut, rounded):
        program.save(tmp_path / "llama.pte")
        session = pockmobile.Session(tmp_path / "llama.pte", threads=1)
        curves.append([session.step(inputs, labels, lr=0.5) for _ in range(10)])
    torch.testing.assert_close(curves[1], curves[0], rtol=0.02, atol=0)
    assert curves[0][-1] < curves[0][0]


def needs(program: pockmobile.Program, name: str) -> int:
    method = program.manifest.methods[name]
    return method.planned_bytes + method.workspace_bytes


class Transformers(nn.Module):
    """A Llama of `transformers`, which returns logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=NUM_TOKENS,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=LENGTH,
            use_cache=False,
            tie_word_embeddings=True,
        )
        self.model = transformers.LlamaForCausalLM(config)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens).logits
        return logits


def test_a_llama_of_transformers(tmp_path: Path) -> None:
    model = Transformers().eval()
    program = compiled(model, WIDTH, "lora:2")
    assert needs(program, "train_step") < LOGITS
    assert needs(program, "evaluate") < LOGITS
    program.save(tmp_path / "llama.pte")
    session = pockmobile.Session(tmp_path / "llama.pte", threads=1)
    inputs, labels = tokens()
    losses = [session.step(inputs, labels, lr=1.0) for _ in range(5)]
    assert losses[0] == pytest.approx(masked_loss(model(inputs), labels).item(), rel=1e-5)
    assert losses[-1] < losses[0]


def test_float16_has_not_the_numbers_of_all_labels() -> None:
    with pytest.raises(UsageError, match="--loss-chunk 128 needs a target that computes in f"):
        pockmobile.compile(
            llama(is_tied=True),
            (tokens()[0],),
            loss="next_token",
            target=pockmobile.CoreML(precision="fp16"),
            loss_chunk=WIDTH,
        )
