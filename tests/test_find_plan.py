"""The whole search for a plan, on tasks that take a second."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pockmobile
from pockmobile import Budget, models
from pockmobile.errors import PlanError, UsageError
from pockmobile.models.transformer_lm import TransformerLM
from pockmobile.optim import SGD, Momentum
from pockmobile.plan import UpdatePlan
from pockmobile.planner import Examples, Findings, Settings, analyze, find_plan
from pockmobile.planner.evidence import FULL, HEAD
from pockmobile.planner.examples import join_batches

BATCH = 8
QUICK: Mapping[str, Any] = {
    "optimizer": SGD(), "lr": 0.1, "num_steps": 8, "num_repeats": 2, "num_best": 2,
    "num_processes": 1, "shows_progress": False,
}  # fmt: skip
LOOSE = Budget(memory_bytes=10**9)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return models.mlp(num_inputs=8, num_classes=2)


def batches(num_batches: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Returns batches of features of which the first one decides the class."""
    features = torch.randn(num_batches, BATCH, 8, generator=torch.Generator().manual_seed(seed))
    return [(x, (x[:, 0] > 0).long()) for x in features]


TRAIN, EVAL = batches(4, 1), batches(2, 2)


@cache
def analyzed(budget: Budget, seed: int = 0) -> Findings:
    train, batch_size = join_batches("training", TRAIN)
    evaluation, _ = join_batches("evaluation", EVAL)
    settings = Settings(**QUICK, seed=seed)
    return analyze(mlp(), train, evaluation, batch_size, "cross_entropy", budget, settings)


@cache
def needs(name: str) -> int:
    """Returns the bytes that a plan of the evidence is predicted to need."""
    (found,) = (one for one in analyzed(LOOSE).evidence if one.name == name)
    return found.cost.memory_bytes


def tight() -> Budget:
    """Returns a budget between the head's plan and that of everything."""
    return Budget(memory_bytes=(needs(HEAD) + needs(FULL)) // 2)


def compiled_bytes(plan: UpdatePlan, target: str = "xnnpack") -> int:
    program = pockmobile.compile(
        mlp(), (TRAIN[0][0],), (TRAIN[0][1],), plan=plan, target=target
    )
    method = program.manifest.methods["train_step"]
    return method.planned_bytes + method.workspace_bytes


def test_the_plan_fits_the_budget_when_it_is_compiled() -> None:
    found = analyzed(tight())
    assert found.budget.memory_bytes is not None
    assert compiled_bytes(found.plan) == found.shown_bytes <= found.budget.memory_bytes


def test_the_plan_is_the_best_of_the_evidence_that_fits() -> None:
    found = analyzed(tight())
    assert found.chosen in found.evidence
    assert found.plan == found.space.plan(found.chosen.selection)
    fitting = [one for one in found.evidence if one.cost.fits(found.budget)]
    assert found.chosen.metric == max(one.metric for one in fitting)
    assert {FULL, HEAD} <= {one.name for one in found.evidence}
    full = next(one for one in found.evidence if one.name == FULL)
    assert full.cost.step_ratio == 1
    assert not full.cost.fits(found.budget)
    assert all(len(one.outcomes) == 2 for one in found.evidence)


def test_the_evidence_names_each_plan_once() -> None:
    evidence = analyzed(LOOSE).evidence
    assert len({one.selection for one in evidence}) == len(evidence)
    assert len({one.name for one in evidence}) == len(evidence)


def test_find_plan_returns_the_plan_of_the_analysis_and_leaves_the_model() -> None:
    model = mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = pockmobile.find_plan(model, TRAIN, EVAL, budget=tight(), **QUICK)
    assert plan == analyzed(tight()).plan
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_same_twice_under_a_seed() -> None:
    train, batch_size = join_batches("training", TRAIN)
    evaluation, _ = join_batches("evaluation", EVAL)
    again = analyze(
        mlp(), train, evaluation, batch_size, "cross_entropy", tight(), Settings(**QUICK)
    )
    first = analyzed(tight())
    assert again.plan == first.plan
    assert again.evidence == first.evidence
    assert again.result == first.result


def test_a_budget_of_time_is_kept() -> None:
    found = analyzed(Budget(step_ratio=0.8))
    assert found.chosen.cost.step_ratio <= 0.8


def test_what_was_measured_is_taken_from_the_store_and_each_stage_is_told(
    tmp_path: Path,
) -> None:
    store = tmp_path / "runs.jsonl"
    told: list[str] = []
    settings = {**QUICK, "store": store, "progress": told.append}
    first = find_plan(mlp(), TRAIN, EVAL, budget=tight(), **settings)
    written = store.read_text(encoding="utf-8")
    assert find_plan(mlp(), TRAIN, EVAL, budget=tight(), **settings) == first
    assert store.read_text(encoding="utf-8") == written
    assert told[0] == "export the forward pass"
    assert told[-1] == "export the best plan"
    assert "search" in told


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        (Budget(memory_bytes=1000), r"0\.001 MB"),
        (Budget(step_ratio=0.001), "0.001 of a full step's time"),
    ],
)
def test_a_budget_that_nothing_fits_names_the_smallest_plan_and_its_cost(
    budget: Budget, limit: str
) -> None:
    with pytest.raises(PlanError, match=limit) as caught:
        analyzed(budget)
    message = str(caught.value)
    assert "the smallest plan (the base alone: head.weight, head.bias) needs" in message
    assert f"{needs(HEAD) / 1e6:.6g} MB" in message
    assert "\n" not in message


class _Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, features: Tensor, scale: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(features) * scale))  # type: ignore[no-any-return]


def test_batches_by_position_and_by_keyword_give_the_same_plan() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return _Keywords()

    scale = torch.full((BATCH, 1), 2.0)
    tuples = [[((x, scale), y) for x, y in part] for part in (TRAIN, EVAL)]
    # Of keywords the order does not matter.
    named = [
        [({"scale": scale, "features": x}, [y]) for x, y in part] for part in (TRAIN, EVAL)
    ]
    plans = [find_plan(model(), *part, budget=LOOSE, **QUICK) for part in (tuples, named)]
    assert plans[0] == plans[1]


def test_a_model_with_a_tied_head_and_next_tokens() -> None:
    torch.manual_seed(0)
    model = TransformerLM(num_tokens=12, context=4, width=8, num_blocks=1, num_heads=2)
    tokens = torch.randint(12, (3, 4, 4))
    data = [(each, each) for each in tokens]
    plan = find_plan(
        model, data, data, loss="next_token", budget=LOOSE,
        **{**QUICK, "optimizer": Momentum(), "num_steps": 4, "target": "portable"},
    )  # fmt: skip
    assert plan.update


DIFFERENT = (
    r"the training batches differ: the first one holds input float32 \[8\], target int64 \[\], "
    r"another one input float32 \[8\], target float32 \[8\], target int64 \[\]; give the same "
    "tensors in each"
)


@pytest.mark.parametrize(
    ("train", "evaluation", "text"),
    [
        ([], EVAL, "the training batches are empty; give at least one"),
        (TRAIN, [], "the evaluation batches are empty; give at least one"),
        ([torch.ones(3)], EVAL, r"must be a pair \(inputs, targets\), found Tensor"),
        (TRAIN, [(1, 2, 3)], r"evaluation batch must be a pair .* found tuple"),
        ([("text", torch.ones(3))], EVAL, "tensors with a batch dimension, found str"),
        ([(torch.ones(()), torch.ones(3))], EVAL, "a batch dimension, found Tensor"),
        ([({"x": 3}, torch.ones(3))], EVAL, "tensors with a batch dimension, found int"),
        ([((TRAIN[0][0],) * 2, TRAIN[0][1])], EVAL, "forward pass fails on example inputs"),
        ([TRAIN[0], (TRAIN[1][0], TRAIN[1])], EVAL, DIFFERENT),
        ([TRAIN[0], ({"x": TRAIN[1][0]}, TRAIN[1][1])], EVAL, "training batches differ"),
        ([TRAIN[0], (TRAIN[1][0][:, :4], TRAIN[1][1])], EVAL, "training batches differ"),
        ([(TRAIN[0][0], TRAIN[0][1][:2])], EVAL, "training data hold 2, 8 examples"),
        (TRAIN, [(EVAL[0][0][:, :4], EVAL[0][1])], "evaluation data's .* expected"),
    ],
)  # fmt: skip
def test_bad_batches_are_an_error(train: Any, evaluation: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        find_plan(mlp(), train, evaluation, budget=LOOSE, **QUICK)


def test_a_split_holds_out_a_fifth_and_keeps_pairs() -> None:
    rows = torch.arange(11)
    examples = Examples((rows,), {"x": rows + 1}, (rows + 2,))
    train, held_out = examples.split(seed=0)
    assert (train.num_examples, held_out.num_examples) == (9, 2)
    assert sorted([*train.args[0].tolist(), *held_out.args[0].tolist()]) == rows.tolist()
    assert torch.equal(train.kwargs["x"], train.args[0] + 1)
    assert torch.equal(train.targets[0], train.args[0] + 2)
    again, _ = examples.split(seed=0)
    assert torch.equal(again.args[0], train.args[0])


def test_a_target_whose_costs_are_unknown_is_refused() -> None:
    with pytest.raises(UsageError, match="was measured for portable and xnnpack alone"):
        Settings(target="qnn")
