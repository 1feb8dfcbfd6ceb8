"""The command line of analyze, and of export with the plan that is found."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from pockmobile import Session, UpdatePlan, analyze, export, models
from pockmobile.options.analysis import DEFAULTS, byte_size, read_data
from pockmobile.options.common import load
from pockmobile.planner import Settings
from pockmobile.sensitivity import workers
from tests.export_models import Tokens, refused, run_export, save_state

Capture = pytest.CaptureFixture[str]
MLP = f"{__name__}:make_mlp"
CNN = f"{__name__}:make_cnn"
BUDGET = 12_000
QUICK = f"--model {MLP} --lr 0.7 --steps 150 --jobs 1 --target portable".split()


def make_mlp() -> nn.Module:
    return models.mlp(num_inputs=8, num_classes=2)


def make_cnn() -> nn.Module:
    return models.residual_cnn(num_classes=2)


def data_file(path: Path, num_rows: int = 300) -> Path:
    """Writes features whose class is the sign of the product of two: no head alone does."""
    features = torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(0))
    labels = (features[:, 0] * features[:, 1] > 0).long()
    safetensors.torch.save_file({"features": features, "target": labels}, path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_state(tmp_path / "mlp.pt", make_mlp())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return data_file(tmp_path / "data.safetensors")


def run(*arguments: object) -> int:
    return analyze.main([str(argument) for argument in arguments])


# Analyses


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of an analysis, and its arguments."""
    folder = tmp_path_factory.mktemp("analysis")
    torch.manual_seed(0)
    path, data = (
        save_state(folder / "mlp.pt", make_mlp()),
        data_file(folder / "data.safetensors"),
    )
    command = [path, "--data", data, *QUICK, "--memory-budget", BUDGET]
    arguments = list(map(str, [*command, "--report", folder / "report.html"]))
    assert run(*arguments) == 0
    return folder, arguments


def test_the_plan_fits_the_budget_in_an_exported_program(
    analysis: tuple[Path, list[str]], tmp_path: Path, capsys: Capture
) -> None:
    folder, _ = analysis
    plan = UpdatePlan.load(folder / "mlp.plan.json")
    assert {"head.weight", "head.bias"} < set(plan.update)
    session = run_export(
        capsys, folder / "mlp.pt", "--model", MLP, "--plan", folder / "mlp.plan.json",
        "--input-shape", 8, "--target", "portable", "-o", tmp_path / "mlp.pte",
    )  # fmt: skip
    assert dict(session.manifest.plan.update) == dict(plan.update)
    method = session.manifest.methods["train_step"]
    assert method.planned_bytes + method.workspace_bytes <= BUDGET


def test_the_report_is_written(analysis: tuple[Path, list[str]]) -> None:
    page = (analysis[0] / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "What to train in MLP" in page
    assert "(chosen)" in page


def test_an_analysis_goes_on_where_it_was_killed(
    analysis: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    folder, arguments = analysis
    runs = tmp_path / "some.runs.jsonl"
    whole = (folder / "mlp.plan.runs.jsonl").read_text()
    runs.write_text(whole[:-20])
    measured = []
    fine_tune = workers.fine_tune
    monkeypatch.setattr(
        workers,
        "fine_tune",
        lambda *arguments: measured.append(arguments) or fine_tune(*arguments),
    )
    plan = tmp_path / "some.json"
    assert run(*arguments, "-o", plan, "--runs", runs) == 0
    assert len(measured) == 1
    assert runs.read_text() == whole
    assert plan.read_text() == (folder / "mlp.plan.json").read_text()
    output, errors = capsys.readouterr()
    assert errors == ""
    assert output.startswith("budget     0.012 MB\nplan       ")
    for words in (
        "before training, ", "% head alone, ", "% this plan, ", " a step as exported, ",
        "of full's, as predicted", "240 to train, 60 held out; 2 runs of each plan",
        "fine-tuned, with the costs predicted:\n  plan ", " (chosen)  ", "\n  full ",
        f"\nwrote {plan}\nwrote {folder / 'report.html'}\n",
    ):  # fmt: skip
        assert words in output
    assert output.endswith(f"{runs} keeps what was measured; it can be deleted\n")


def test_runs_of_another_schedule_are_refused(
    analysis: tuple[Path, list[str]], tmp_path: Path, capsys: Capture
) -> None:
    folder, arguments = analysis
    plan = tmp_path / "plan.json"
    runs = folder / "mlp.plan.runs.jsonl"
    assert run(*arguments, "-o", plan, "--runs", runs, "--steps", 7) == 2
    assert "other weights, data, loss or schedule; delete it" in capsys.readouterr().err
    assert not plan.exists()


def test_a_budget_that_nothing_fits(
    analysis: tuple[Path, list[str]], tmp_path: Path, capsys: Capture
) -> None:
    folder, arguments = analysis
    plan = tmp_path / "plan.json"
    runs = folder / "mlp.plan.runs.jsonl"
    assert run(*arguments, "-o", plan, "--runs", runs, "--memory-budget", "1kB") == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("error: no plan fits a budget of 0.001 MB: the smallest plan ")
    assert "head.weight, head.bias) needs 0.00" in errors
    assert errors.count("\n") == 1
    assert not plan.exists()


def test_convolutions_under_a_budget_of_time(tmp_path: Path, capsys: Capture) -> None:
    torch.manual_seed(0)
    path = tmp_path / "cnn.pt2"
    images = torch.randn(4, 3, 8, 8)
    torch.export.save(torch.export.export(make_cnn().eval(), (images,)), path)
    for name, num_rows in (("train", 12), ("eval", 6)):
        images = torch.randn(num_rows, 3, 8, 8)
        labels = (images.mean((1, 2, 3)) > 0).long()
        torch.save({"images": images, "labels": labels}, tmp_path / f"{name}.pt")
    command = [path, "--data", tmp_path / "train.pt", "--eval-data", tmp_path / "eval.pt"]
    assert run(*command, "--step-budget", 0.7, "--steps", 2, "--jobs", 1) == 0
    assert "12 to train, 6 held out" in capsys.readouterr().out
    assert "head.weight" in UpdatePlan.load(tmp_path / "cnn.plan.json").update


# Export with the plan that is found


def test_export_finds_its_own_plan(
    analysis: tuple[Path, list[str]], tmp_path: Path, capsys: Capture
) -> None:
    folder, _ = analysis
    program, plan = tmp_path / "mlp.pte", tmp_path / "mlp.plan.json"
    data, runs = folder / "data.safetensors", folder / "mlp.plan.runs.jsonl"
    before = runs.read_text()
    command = [folder / "mlp.pt", "--plan", "auto", "--data", data, *QUICK, "-o", program]
    command += ["--memory-budget", BUDGET, "--runs", runs]
    assert export.main(list(map(str, command))) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert f"\nwrote {plan}; {runs} can be deleted\n\nmodel      MLP for portable" in output
    assert output.splitlines()[-1].startswith(f"wrote {program} in ")
    assert runs.read_text() == before
    assert plan.read_text() == (folder / "mlp.plan.json").read_text()
    session = Session(program)
    assert dict(session.manifest.plan.update) == dict(UpdatePlan.load(plan).update)
    content = safetensors.torch.load_file(data)
    rows = content["features"][:8], content["target"][:8]
    losses = [session.step(*rows, lr=0.2) for _ in range(20)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data {data}", "--data belongs to --plan auto; add that, or leave it out"),
        ("--plan full --step-budget 0.4", "--step-budget belongs to --plan auto"),
        ("--seed 0", "--seed belongs to --plan auto"),
        ("--plan auto --memory-budget 1MB", "--data FILE is missing"),
        ("--plan auto --data {data}", "add --memory-budget, --step-budget or both"),
        (
            "--plan auto --data {data} --step-budget 1 --input-shape 8",
            "--plan auto takes its examples from --data; leave --input-shape and",
        ),
    ],
)
def test_export_refuses(
    model: Path, data: Path, arguments: str, message: str, capsys: Capture
) -> None:
    words = arguments.format(data=data).split()
    assert message in refused(capsys, model, "--model", MLP, *words)


# Arguments


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65_536),
        ("24MB", 24_000_000),
        ("24 mb", 24_000_000),
        ("512kB", 512_000),
        ("1.5GiB", 1_610_612_736),
        ("0.5KiB", 512),
        ("100B", 100),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text) == size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--step-budget 0.4", "--data FILE is missing: examples of what the model shall learn"),
        ("--data {data}", "the budget is missing: add --memory-budget, --step-budget or both"),
        ("--memory-budget 24QB", "expected a size like 24MB, 512kB, 1.5GiB or plain bytes"),
        ("--memory-budget 0MB", "expected a size like 24MB"),
        ("--memory-budget 1e6", "expected a size like 24MB"),
        ("--memory-budget -1", "argument --memory-budget: expected"),
        ("--step-budget 0", "argument --step-budget: expected a number above 0, found '0'"),
        ("--repeats 1", "argument --repeats: expected a whole number from 2, found '1'"),
        ("--steps 0", "argument --steps: expected a whole number from 1, found '0'"),
        ("--momentum 0.9", "--momentum does not belong to sgd"),
        ("--data no.npz --step-budget 1", "cannot read no.npz: No such file or directory"),
        ("--data {data} --eval-data no.npz --step-budget 1", "cannot read no.npz"),
        ("-o no/plan.json", "cannot write no/plan.json: no is no directory"),
        ("-o {model}", "would overwrite the model; choose another --output"),
        ("--data {data} -o {data}", "would overwrite the data; choose another --output"),
        ("--report {model}", "would overwrite the model; choose another --report"),
        ("-o r.html --report r.html", "r.html would overwrite the plan; choose another"),
        (
            "--data {data} --step-budget 1 -o p.json --runs p.json",
            "p.json would overwrite the plan; choose another --runs",
        ),
        ("--data {data} --step-budget 1 --loss nowhere:loss", "cannot import nowhere"),
        ("--data {data} --step-budget 1 --loss mae", "unknown loss 'mae': did you mean mse"),
        ("--data {data} --step-budget 1 --batch-size 300", "leaves 240 examples to train on"),
    ],
)
def test_wrong_arguments(
    model: Path, data: Path, arguments: str, message: str, capsys: Capture
) -> None:
    words = arguments.format(data=data, model=model).split()
    before = sorted(model.parent.iterdir())
    assert run(model, "--model", MLP, *words) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert sorted(model.parent.iterdir()) == before


def test_the_defaults_are_those_of_python() -> None:
    settings = Settings()
    assert {
        "steps": settings.num_steps,
        "repeats": settings.num_repeats,
        "jobs": settings.num_processes,
        "seed": settings.seed,
    } == DEFAULTS


# Data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"features": torch.randn(20, 8)}, "data.pt has no targets; add a tensor named"),
        ({"feautres": torch.randn(20, 8)}, "no parameter 'feautres': did you mean features"),
        (
            {"features": torch.randn(20, 8), "labels": torch.zeros(19, dtype=torch.int64)},
            "no batch of one size: dimension 0 is features: 20, target 0: 19",
        ),
        ({"target": torch.zeros(20)}, "there are no example inputs"),
        (
            {"features": torch.randn(20, 7), "target": torch.zeros(20, dtype=torch.int64)},
            "the model's forward pass fails on example inputs of shape [8, 7]",
        ),
    ],
)
def test_data_that_do_not_fit(
    model: Path, content: dict[str, torch.Tensor], message: str, capsys: Capture
) -> None:
    data = model.with_name("data.pt")
    torch.save(content, data)
    assert run(model, "--data", data, *QUICK, "--step-budget", 1) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_tokens_are_the_targets_of_a_language_model(tmp_path: Path) -> None:
    path = save_state(tmp_path / "lm.pt", Tokens())
    ids = torch.randint(0, 11, (20, 5))
    data = tmp_path / "ids.safetensors"
    safetensors.torch.save_file({"ids": ids}, data)
    words = ["--model", "tests.export_models:Tokens", "--loss", "next_token", "--seed", "3"]
    command = [path, "--data", data, "--step-budget", 0.5, "--batch-size", 4, *words]
    options = analyze._parse(list(map(str, command)))
    found = read_data(options, load(options))
    assert (found.train.num_examples, found.evaluation.num_examples) == (16, 4)
    for part in (found.train, found.evaluation):
        assert torch.equal(part.targets[0], part.kwargs["ids"])
    rows = torch.cat([found.train.targets[0], found.evaluation.targets[0]]).tolist()
    assert sorted(rows) == sorted(ids.tolist())
    assert found.example.num_examples == 4
