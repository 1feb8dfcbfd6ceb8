"""The benchmark: turns, figures and faults on made-up workers; real ones on small models."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import pytest
import torch
from safetensors.torch import save_file

from pockmobile.errors import UsageError
from scripts import bench
from scripts.benchmark import measure as bench_measure
from scripts.benchmark.cache import Cache
from scripts.benchmark.measure import NUM_CHECKED, Setting, measure
from scripts.benchmark.peers import Environments
from scripts.benchmark.process import Worker
from scripts.benchmark.results import (
    Case,
    Measured,
    add_result,
    faults,
    has_learnt,
    is_broken,
    read_results,
)
from scripts.benchmark.table import lines_of
from scripts.benchmark.variants import (
    VARIANTS,
    Job,
    Memory,
    ProgramInfo,
    Steps,
    VariantError,
)
from scripts.benchmark.works import WORKS

ROOT: Final = Path(bench.__file__).resolve().parent.parent
FIXTURE: Final = ROOT / "tests" / "fixtures" / "keyboard" / "keyboard.pte"
TINY: Final = WORKS["tiny_lm-8"]


class FakeCache:
    """Has every file, but the programs of stock ExecuTorch on XNNPACK."""

    def __init__(self, folder: Path) -> None:
        self.logs = folder

    def inputs(self, work: str, batch: int) -> Path:
        return self.logs / f"{work}-{batch}"

    def program(
        self, kind: str, work: str, batch: int, detail: str, without: str = ""
    ) -> tuple[Path, ProgramInfo]:
        if detail == "xnnpack":
            raise VariantError("the export fails: no kernel")
        path = self.logs / f"{kind}.pte"
        path.write_bytes(b"12345")
        info = ProgramInfo(
            seconds=3.0, peak_bytes=9, planned_bytes=70, workspace_bytes=30, parts={"w": None}
        )
        return path, info


class FakeWorker:
    """Takes a known time for each step, and notes whose turn it is.

    Those of torch.compile die at their second step of measuring.
    """

    turns: list[str] = []  # noqa: RUF012 - of all workers together

    def __init__(self, job: Job, cache: object, log: Path) -> None:
        self._job, self._num_timed = job, 0
        self._name = f"{job.engine}{'-same' if job.parts else ''}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.turns.append(f"end {self._name}")

    def step(self, num_steps: int, lr: float) -> Steps:
        seconds = 0.05 if self._job.engine == "ours" else 0.2
        if lr > 0:
            return Steps([seconds] * num_steps, 1.0, [3.0 - 0.1 * i for i in range(num_steps)])
        self._num_timed += 1
        self.turns.append(f"{self._name} {num_steps}")
        if self._job.is_compiled and self._num_timed > 2:
            raise VariantError("the process ended: killed")
        # Slower from turn to turn, so that a minimum is not a median.
        slower = seconds + 0.001 * self._num_timed
        return Steps([slower] * num_steps, 2.0 * num_steps, [2.0] * num_steps)

    def memory(self) -> Memory:
        return Memory(1000, 5000)


def _setting(*names: str, num_rounds: int = 3) -> Setting:
    return Setting(
        work=TINY,
        plan=TINY.plan,
        batch=2,
        threads=1,
        num_rounds=num_rounds,
        variants=tuple(VARIANTS[name] for name in names),
    )


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setattr(bench_measure, "Worker", FakeWorker)
    monkeypatch.setattr(bench_measure, "_PAUSE", 0.0)
    FakeWorker.turns.clear()
    yield FakeWorker.turns
    FakeWorker.turns.clear()


def _cache(folder: Path) -> Cache:
    return Cache(folder, Environments(folder / "environments"))


def _measure(setting: Setting, folder: Path) -> Case:
    cache: Any = FakeCache(folder)
    return measure(setting, cache, lambda _: None)


def test_variants_take_turns(turns: list[str], tmp_path: Path) -> None:
    _measure(_setting("ours", "eager-same", "eager-full"), tmp_path)
    # A step of ours takes half the time of a round: two are timed, behind one that is not.
    a_round = ["ours 1", "ours 2", "eager-same 1", "eager 1"]
    assert turns[:3] == ["ours 1", "eager-same 1", "eager 1"]  # the end of the warm-up
    assert turns[3:-3] == 3 * a_round
    assert sorted(turns[-3:]) == ["end eager", "end eager-same", "end ours"]


@pytest.mark.usefixtures("turns")
def test_figures_are_those_of_the_timed_steps(tmp_path: Path) -> None:
    case = _measure(_setting("ours"), tmp_path)
    (ours,) = case.measured
    # Call 1 ends the warm-up; 2, 4 and 6 warm the caches.
    assert ours.seconds == pytest.approx([0.053, 0.055, 0.057])
    assert (ours.median, ours.minimum) == pytest.approx((0.055, 0.053))
    assert ours.user_seconds == pytest.approx(2.0)
    assert ours.memory_bytes == 4000
    assert (ours.planned_bytes, ours.workspace_bytes, ours.file_bytes) == (70, 30, 5)
    assert len(ours.losses) == NUM_CHECKED + 1


@pytest.mark.usefixtures("turns")
def test_a_variant_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    case = _measure(_setting("eager-full", "compile-full", "stock-xnnpack"), tmp_path)
    assert [item.variant for item in case.measured] == ["eager-full"]
    assert len(case.measured[0].seconds) == 3
    assert case.skipped == {
        "stock-xnnpack": "the export fails: no kernel",
        "compile-full": "the process ended: killed",
    }
    text = "\n".join(lines_of(case))
    assert "stock-xnnpack: not measured: the export fails: no kernel" in text
    assert "compile-full: not measured: the process ended: killed" in text
    # Peers may fail.
    assert not is_broken(case)


def _measured(variant: str, losses: list[float], seconds: float = 0.01) -> Measured:
    return Measured(
        variant=variant,
        losses=losses,
        seconds=[seconds, 2 * seconds, 4 * seconds],
        steps_per_round=1,
        user_seconds=seconds,
        baseline_bytes=1_000_000,
        peak_bytes=3_500_000,
    )


def _case(*measured: Measured, skipped: Mapping[str, str] | None = None) -> Case:
    return Case(
        work=TINY.name,
        batch=2,
        threads=1,
        plan="full",
        lr=0.1,
        load=(0.5, 1.5),
        machine={},
        measured=list(measured),
        skipped=skipped or {},
    )


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0, 1.9], True),
        ([2.0, 2.0], False),
        ([2.0, 1.9999], False),
        ([2.0, 2.1], False),
        ([2.0, 1.0, float("nan")], False),
        ([float("nan"), 1.0], False),
    ],
)
def test_learning_is_a_loss_that_falls(losses: list[float], expected: bool) -> None:
    assert has_learnt(losses) is expected


@pytest.mark.parametrize("name", VARIANTS)
def test_a_loss_that_stays_breaks_the_run(name: str) -> None:
    good = _case(_measured(name, [2.0, 1.0]))
    assert faults(good) == []
    assert not is_broken(good)
    bad = _case(_measured(name, [2.0, 2.0]))
    (fault,) = faults(bad)
    assert fault.text == "its loss did not fall: 2.0000 to 2.0000"
    assert is_broken(bad)


def test_training_something_else_is_told_and_breaks_the_run_only_if_ours() -> None:
    eager = _measured("eager-full", [2.0, 1.5, 1.0])
    head_only = [2.0, 1.9, 1.8]
    case = _case(_measured("ours-full", [2.0, 1.5, 1.001]), eager)
    assert faults(case) == []
    case = _case(_measured("stock-xnnpack", head_only), eager)
    (fault,) = faults(case)
    assert fault.text == (
        "it trains something else: its loss is 1.8000 after 2 steps, that of eager-full 1.0000"
    )
    assert not is_broken(case)
    assert is_broken(_case(_measured("ours-full", head_only), eager))
    # So is ours without a pass: it must be the same, only slower.
    less = _measured("ours-without-fold-scale", head_only)
    assert is_broken(_case(less, _measured("eager-same", [2.0, 1.5, 1.0])))
    # The plan's variants are held against the eager twin of the plan.
    assert not is_broken(_case(_measured("ours", head_only), eager))
    same = _measured("eager-same", [2.0, 1.5, 1.0])
    assert is_broken(_case(_measured("ours", head_only), same))


def test_a_variant_of_ours_that_was_not_measured_breaks_the_run() -> None:
    assert is_broken(_case(skipped={"ours": "no memory"}))
    assert is_broken(_case(skipped={"eager-full": "no memory"}))
    assert not is_broken(_case(skipped={"compile-full": "no compiler"}))
    assert not is_broken(_case(skipped={"ours-without-fold-scale": "changes nothing here"}))


def test_the_table_compares_with_ours() -> None:
    lines = lines_of(
        _case(_measured("eager-full", [2.0, 1.0], 0.05), _measured("ours", [2.0, 1.0], 0.01))
    )
    assert lines[0] == "## tiny_lm-8, batch 2, full, 1 thread"
    assert lines[2] == "3 rounds, load average 0.5 to 1.5"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:-1]]
    assert rows[2][:6] == ["ours", "20.0 ms", "10.0 ms", "1.00", "1.00", "10.0 ms"]
    assert rows[3][:6] == ["eager-full", "100 ms", "50.0 ms", "5.00", "5.00", "50.0 ms"]
    assert rows[3][8] == "2.5 MB"


def test_results_are_added_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    first, second = _case(_measured("ours", [2.0, 1.0])), _case()
    add_result(path, first)
    add_result(path, replace(second, batch=8))
    add_result(path, replace(first, lr=0.2))
    found = read_results(path)
    assert [(case.batch, case.lr) for case in found] == [(8, 0.1), (2, 0.2)]
    assert found[1] == replace(first, lr=0.2)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 1, "cases": [{"work": "x"}]}'])
def test_a_file_that_holds_no_results_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="is no file of results"):
        read_results(path)
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keyboard"], "unknown 'keyboard': did you mean keyboard_lm-32?"),
        (["--variants", "our"], "unknown 'our': did you mean ours"),
        (["--rounds", "0"], "expected a whole number from 1, found '0'"),
        (["--plan", "missing.json"], "cannot read the plan missing.json"),
        (["--plot", "out.docx"], "--plot out.docx: expected a file of"),
    ],
)
def test_arguments_are_refused_in_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
    assert bench.main() == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scripts.benchmark.plot.find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--plot", "out.png"])
    assert bench.main() == 2
    assert "--plot needs matplotlib: pip install 'pockmobile[plots]'" in capsys.readouterr().err


def test_a_worker_trains_a_program(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.safetensors"
    tokens = torch.randint(10_000, (4, 16), generator=torch.Generator().manual_seed(0))
    save_file({"inputs": tokens, "targets": tokens.clone()}, inputs)
    job = Job(
        engine="ours", work=TINY.name, inputs=str(inputs), threads=1, program=str(FIXTURE)
    )
    with Worker(job, _cache(tmp_path / "cache"), tmp_path / "log") as worker:
        trained = worker.step(4, 0.5)
        still = worker.step(3, 0.0)
        memory = worker.memory()
    assert has_learnt(trained.losses)
    assert len(set(still.losses)) == 1
    assert still.losses[0] < trained.losses[-1]
    assert len(trained.seconds) == 4
    assert all(seconds > 0 for seconds in trained.seconds)
    assert 0 < trained.user_seconds < 60
    # The state alone is 300 kB, and the logits are 2.6 MB.
    assert 2_000_000 < memory.peak_bytes - memory.baseline_bytes < 200_000_000


def test_a_worker_that_cannot_open_its_variant_says_why(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.safetensors")
    job = Job(engine="eager", work=TINY.name, inputs=missing, threads=1)
    with pytest.raises(VariantError, match=r"the process ended: FileNotFoundError: .*missing"):
        Worker(job, _cache(tmp_path / "cache"), tmp_path / "log")


def test_an_export_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(VariantError, match="the export fails: KeyError: 'nonsense'"):
        _cache(tmp_path).inputs("nonsense", 2)


def test_a_run_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, plot = tmp_path / "bench.json", tmp_path / "bench.svg"
    arguments = [TINY.name, "--batch", "2", "--rounds", "2", "--variants", "eager-full"]
    files = ["-o", str(output), "--plot", str(plot), "--cache", str(tmp_path / "cache")]
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments, *files])
    assert bench.main() == 0
    (case,) = read_results(output)
    (eager,) = case.measured
    assert (case.work, case.batch, len(eager.seconds)) == (TINY.name, 2, 2)
    assert eager.losses[0] == pytest.approx(4.16, abs=0.1)  # ln 64: random weights
    assert "| eager-full |" in capsys.readouterr().out
    assert "<svg" in plot.read_text(encoding="utf-8")
    # A rate at which it cannot learn: the status tells.
    monkeypatch.setitem(WORKS, TINY.name, replace(TINY, lr=0.0))  # type: ignore[misc]
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments, "--cache", files[-1]])
    assert bench.main() == 1
    captured = capsys.readouterr()
    assert "eager-full: its loss did not fall" in captured.out
    assert "did not train as it should: tiny_lm-8, batch 2" in captured.err


@pytest.mark.slow
def test_ours_trains_as_eager_pytorch_does(tmp_path: Path) -> None:
    setting = _setting("ours", "eager-same", "stock-portable", "eager-full", num_rounds=1)
    case = measure(setting, _cache(tmp_path), lambda _: None)
    assert case.skipped == {}
    assert faults(case) == []


@pytest.mark.slow
def test_an_encoder_trains_as_eager_pytorch_does(tmp_path: Path) -> None:
    setting = replace(
        _setting("ours", "eager-same", num_rounds=1), work=WORKS["tiny_encoder-8"]
    )
    case = measure(setting, _cache(tmp_path), lambda _: None)
    assert case.skipped == {}
    assert faults(case) == []
