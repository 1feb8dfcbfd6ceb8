"""The command prints the report or the manifest, and answers mistakes with one line."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pockmobile.artifact.manifest import Manifest
from pockmobile.artifact.report import render
from pockmobile.inspect import main
from tests.tiny_program import tiny_manifest, write_tiny_program


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_program(tmp_path_factory.mktemp("tiny") / "tiny.pte").path


def test_report(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == render(tiny_manifest(), path.stat().st_size) + "\n"


def test_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(path), "--json"]) == 0
    assert Manifest.from_json(capsys.readouterr().out) == tiny_manifest()


def test_as_a_command(path: Path) -> None:
    done = _run(str(path))
    assert done.returncode == 0
    assert done.stdout.startswith("model      TinyClassifier for portable\n")


def test_wrong_file_is_one_line(tmp_path: Path) -> None:
    done = _run(str(tmp_path / "no.pte"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: cannot read ")
    assert done.stderr.endswith("no.pte: No such file or directory\n")
    assert done.stderr.count("\n") == 1


def test_usage_errors() -> None:
    assert _run().returncode == 2
    assert _run("a.pte", "--yaml").returncode == 2


def test_help_is_quick() -> None:
    start = time.monotonic()
    done = _run("--help")
    assert done.returncode == 0
    assert "--json" in done.stdout
    assert time.monotonic() - start < 2  # torch alone takes as long
    code = "import sys, pockmobile.inspect; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pockmobile.inspect", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
