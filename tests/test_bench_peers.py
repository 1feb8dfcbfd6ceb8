"""The peers of the benchmark: the network they are told, their environments, their protocol."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pockmobile.models import mobilenet_v2
from scripts import bench_peers
from scripts.benchmark import peers
from scripts.benchmark.cache import Cache
from scripts.benchmark.eager import freeze_rest
from scripts.benchmark.measure import Setting, measure
from scripts.benchmark.network import export_network
from scripts.benchmark.peers import REQUIREMENTS, Environments
from scripts.benchmark.process import Worker
from scripts.benchmark.results import faults, is_broken
from scripts.benchmark.variants import VARIANTS, Job, VariantError
from scripts.benchmark.worker import ENGINES
from scripts.benchmark.works import WORKS, Work, settled_model
from scripts.peer_workers.network import Build, read_batch, read_network

ROOT: Final = Path(bench_peers.__file__).resolve().parent.parent
NET: Final = Work("small", lambda: mobilenet_v2(0.35, 4), (3, 32, 32), 4, "full", 0.1)
LM: Final = WORKS["tiny_lm-8"]


def _attention(q: Tensor, k: Tensor, v: Tensor, *, length: int, heads: int, width: int) -> Any:
    three = (x.view(-1, length, heads, width).transpose(1, 2) for x in (q, k, v))
    y = functional.scaled_dot_product_attention(*three, is_causal=True)
    return y.transpose(1, 2).reshape(-1, heads * width)


TORCH: Final[Mapping[str, Callable[..., Tensor]]] = {
    "fold_weight": lambda weight, gamma, scale: weight * (gamma * scale)[:, None, None, None],
    "fold_bias": lambda beta, gamma, shift: beta - gamma * shift,
    "convolution": functional.conv2d,
    "relu6": functional.relu6,
    "add": torch.add,
    "mean_pool": lambda x: x.mean((2, 3)),
    "linear": functional.linear,
    "embedding": lambda tokens, table: table[tokens.flatten()],
    "add_positions": lambda x, positions, *, length, width: (
        x.view(-1, length, width) + positions
    ).flatten(0, 1),
    "layer_norm": lambda x, weight, bias, *, epsilon: functional.layer_norm(
        x, weight.shape, weight, bias, epsilon
    ),
    "causal_attention": _attention,
    "gelu": functional.gelu,
    "cross_entropy": lambda logits, labels: functional.cross_entropy(logits, labels.flatten()),
}
"""What `scripts/peer_workers/network.py` says of each operator, in PyTorch."""


@pytest.mark.parametrize("plan", ["full", "last:1", "head"])
@pytest.mark.parametrize("work", [NET, LM], ids=["mobilenet", "lm"])
def test_a_network_tells_what_eager_pytorch_trains(
    work: Work, plan: str, tmp_path: Path
) -> None:
    model, batch = settled_model(work, work.statistics()), work.batch(3)
    exported = export_network(model, batch, plan)
    path = tmp_path / "network"
    path.write_bytes(exported.buffer)
    network = read_network(str(path))
    assert list(exported.parts) == list(network.trained)
    leaves = dict(zip(network.trained, freeze_rest(model, exported.parts), strict=True))
    loss = functional.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())
    loss.backward()
    values = {name: torch.from_numpy(value) for name, value in network.tensors.items()}
    for name in network.trained:
        values[name].requires_grad_()
    values |= {"inputs": batch[0], "targets": batch[1]}
    told = Build(TORCH)(network, values)
    told.backward()
    torch.testing.assert_close(told, loss, rtol=1e-5, atol=1e-6)
    for name, (leaf, _) in leaves.items():
        assert leaf.grad is not None
        difference = (values[name].grad - leaf.grad).abs().max()
        # Of rounding: the net's norms are folded in one of the two.
        assert difference <= 1e-3 * leaf.grad.abs().max(), name


def test_frozen_norms_are_folded_and_unused_tensors_left_out(tmp_path: Path) -> None:
    model, batch = settled_model(NET, NET.statistics()), NET.batch(2)
    path = tmp_path / "network"
    path.write_bytes(export_network(model, batch, "head").buffer)
    network = read_network(str(path))
    kinds = {operator.kind for operator in network.operators}
    assert not kinds & {"fold_weight", "fold_bias"}
    read = {name for operator in network.operators for name in operator.inputs}
    assert {*network.tensors} <= read
    path.write_bytes(export_network(model, batch, "last:1").buffer)
    folded = [o for o in read_network(str(path)).operators if o.kind == "fold_weight"]
    # The last block's three convolutions, and the one behind it.
    assert len(folded) == 4


def test_what_is_trained_comes_in_the_order_of_the_forward_pass(tmp_path: Path) -> None:
    model, batch = settled_model(NET, NET.statistics()), NET.batch(2)
    names = list(export_network(model, batch, "full").parts)
    assert names[:3] == ["features.0.1.weight", "features.0.0.weight", "features.0.1.bias"]
    assert {*names[-2:]} == {"classifier.1.weight", "classifier.1.bias"}


def test_what_a_peer_cannot_be_told_is_refused() -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(VariantError, match=r"peers are not told how to build a Sequential"):
        export_network(layers, NET.batch(2), "full")


def test_a_plan_that_trains_a_part_is_refused(tmp_path: Path) -> None:
    part = {"dim": 1, "start": 0, "stop": 8}
    plan = tmp_path / "plan.json"
    plan.write_text(
        json.dumps({"format": 1, "update": {"classifier.1.weight": part}}), encoding="utf-8"
    )
    model, batch = settled_model(NET, NET.statistics()), NET.batch(2)
    with pytest.raises(VariantError, match=r"trains a part of classifier\.1\.weight: peers"):
        export_network(model, batch, str(plan))


class Commands:
    """Notes commands in the place of `subprocess.run`; those of pip may fail."""

    def __init__(self, *, pip_fails: bool) -> None:
        self.commands: list[list[str]] = []
        self._pip_fails = pip_fails

    def __call__(self, command: list[str], *, stdout: Any, **_: Any) -> None:
        self.commands.append(command)
        if "pip" not in command:
            Path(command[-1]).mkdir(parents=True)
        elif self._pip_fails:
            stdout.write(b"Collecting MNN\nERROR: No matching distribution found\n")
            raise subprocess.CalledProcessError(1, command)


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Commands(pip_fails=False)
    monkeypatch.setattr(peers.subprocess, "run", run)
    python = Environments(tmp_path).python("mnn")
    assert python.parent.parent.parent == tmp_path
    make, install = run.commands
    assert make[:4] == [sys.executable, "-m", "venv", "--clear"]
    assert install[0] == str(python)
    assert [*install[-len(REQUIREMENTS["mnn"]) :]] == [*REQUIREMENTS["mnn"]]
    assert Environments(tmp_path).python("mnn") == python
    assert len(run.commands) == 2
    # Other versions, another environment.
    monkeypatch.setitem(REQUIREMENTS, "mnn", ("MNN==0.1",))  # type: ignore[misc]
    assert Environments(tmp_path).python("mnn") != python
    assert len(run.commands) == 4


def test_an_environment_that_cannot_be_made_says_why_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Commands(pip_fails=True)
    environments = Environments(tmp_path)
    message = "its environment cannot be made: ERROR: No matching distribution found"
    with monkeypatch.context() as patch:
        patch.setattr(peers.subprocess, "run", run)
        for _ in range(2):
            with pytest.raises(VariantError, match=message):
                environments.python("mnn")
    assert len(run.commands) == 2
    work = WORKS["tiny_lm-8"]
    setting = Setting(
        work=work,
        plan=work.plan,
        batch=2,
        threads=1,
        num_rounds=1,
        variants=(VARIANTS["mnn-head"], VARIANTS["eager-full"]),
    )
    case = measure(setting, Cache(tmp_path / "cache", environments), lambda _: None)
    assert [item.variant for item in case.measured] == ["eager-full"]
    (fault,) = faults(case)
    assert fault.text == f"not measured: {message}"
    assert not is_broken(case)


FAKE: Final = """#!{python}
import json, sys
from pathlib import Path
assert sys.argv[1] == "-m"
if sys.argv[2] == "scripts.peer_workers.build":
    order = json.loads(sys.argv[3])
    assert Path(order["detail"]).read_bytes()[8:9] == b"{{", "a file of safetensors"
    Path(order["path"]).mkdir()
    (Path(order["path"]) / "a").write_bytes(b"12345")
    info = dict(seconds=2.0, peak_bytes=1, planned_bytes=None, workspace_bytes=None, parts={{}})
    Path(order["path"]).with_suffix(".json").write_text(json.dumps(info))
    sys.exit()
assert sys.argv[2] == "scripts.benchmark.worker"
job = json.loads(input())
assert Path(job["program"], "a").exists()
print('"ready"', flush=True)
loss = 3.0
for line in sys.stdin:
    command = json.loads(line)
    if command["action"] == "end":
        print(json.dumps(dict(baseline_bytes=1, peak_bytes=8)), flush=True)
        break
    losses = []
    for _ in range(command["num_steps"]):
        losses.append(loss)
        loss -= command["lr"]
    seconds = [0.1] * len(losses)
    print(json.dumps(dict(seconds=seconds, user_seconds=1.0, losses=losses)), flush=True)
"""


def test_a_peer_is_built_and_run_by_its_own_interpreter(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(FAKE.format(python=sys.executable), encoding="utf-8")
    python.chmod(0o755)

    class Here:
        def python(self, peer: str) -> Path:
            assert peer == "litert"
            return python

    environments: Any = Here()
    work = WORKS["tiny_lm-8"]
    setting = Setting(
        work=work,
        plan=work.plan,
        batch=2,
        threads=1,
        num_rounds=2,
        variants=(VARIANTS["litert-head"],),
    )
    case = measure(setting, Cache(tmp_path / "cache", environments), lambda _: None)
    assert case.skipped == {}
    (item,) = case.measured
    assert item.seconds == [0.1, 0.1]
    assert (item.memory_bytes, item.file_bytes, item.export_seconds) == (7, 5, 2.0)
    assert item.losses[0] == 3.0 > item.losses[-1]
    assert item.planned_bytes is None


def test_a_peer_trains_what_its_eager_twin_does_or_that_is_told() -> None:
    for name in REQUIREMENTS:
        for part in ("full", "last", "head"):
            assert VARIANTS[f"{name}-{part}"].oracle == f"eager-{part}"
            assert VARIANTS[f"{name}-{part}"].is_peer
    assert not VARIANTS["ours-head"].is_peer
    assert VARIANTS["mnn-last"].plan("sparse:7:7") == "last:1"


def test_what_runs_beside_a_peer_imports_no_torch() -> None:
    modules = (
        "scripts.benchmark.worker, scripts.peer_workers.build, scripts.peer_workers.network"
    )
    code = f"import sys, {modules}; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "executorch", "pockmobile.compiler"} & {*found.stdout.split()}
    for name in REQUIREMENTS:
        module = ROOT / f"{ENGINES[name].replace('.', '/')}.py"  # type: ignore[index]
        for path in (module, module.with_name(f"{module.stem}_build.py")):
            text = path.read_text(encoding="utf-8")
            assert "import torch" not in text
            assert "def load_late" in text or "def build(" in text


def test_a_peer_reads_the_batch_that_all_share(tmp_path: Path) -> None:
    path = Cache(tmp_path, Environments(tmp_path)).inputs("tiny_lm-8", 2)
    batch = read_batch(str(path))
    inputs, targets = WORKS["tiny_lm-8"].batch(2)
    assert np.array_equal(batch.inputs, inputs.numpy())
    assert np.array_equal(batch.targets, targets.numpy())


def test_an_unknown_argument_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", "--variants", "mnn"])
    assert bench_peers.main() == 2
    error = capsys.readouterr().err
    assert "unknown 'mnn': did you mean mnn-" in error
    assert error.count("\n") == 1


def test_the_worker_of_a_peer_that_is_missing_says_why(tmp_path: Path) -> None:
    class Here:
        def python(self, peer: str) -> Path:
            return Path(sys.executable)

    environments: Any = Here()
    job = Job(engine="mnn", work="tiny_lm-8", inputs="", threads=1, program="x")
    with pytest.raises(VariantError, match=r"the process ended: ModuleNotFoundError: .*MNN"):
        Worker(job, Cache(tmp_path, environments), tmp_path / "log")
