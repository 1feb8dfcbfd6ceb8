"""A program file opens only if it is whole, ours, and what its manifest says."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from pockmobile.artifact.program import SEAL_BYTES, write_program
from pockmobile.errors import ArtifactError
from pockmobile.session import Session
from pockmobile.session.program import LoadedProgram
from tests.tiny_program import tiny_program, write_tiny_program

LR = (
    ',{"name":"lr","role":"learning_rate","shape":[],"dtype":"float32",'
    '"low":null,"high":null,"ignored":null}'
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_program(tmp_path_factory.mktemp("tiny") / "tiny.pte").path


def test_missing_program(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"cannot read .*no\.pte: No such file or directory"
    ):
        Session(tmp_path / "no.pte")
    with pytest.raises(ArtifactError, match=r"cannot read .*: Is a directory"):
        Session(tmp_path)


@pytest.mark.parametrize("content", [b"", b"abc", b"PK\x03\x04" + bytes(500), b"\x97" * 5000])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pte").write_bytes(content)
    with pytest.raises(ArtifactError, match="is not an ExecuTorch program"):
        Session(tmp_path / "model.pte")


def test_program_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot write .*model\.pte: No such file"):
        write_program(tmp_path / "missing" / "model.pte", tiny_program())


def test_program_of_another_tool(tmp_path: Path) -> None:
    (tmp_path / "model.pte").write_bytes(tiny_program())
    with pytest.raises(ArtifactError, match="does not end with pockmobile's seal"):
        Session(tmp_path / "model.pte")


def test_cut_and_flipped_programs_are_refused(path: Path, tmp_path: Path) -> None:
    whole, damaged = path.read_bytes(), tmp_path / "model.pte"
    for place in range(0, len(whole), 97):
        damaged.write_bytes(whole[:place])
        with pytest.raises(ArtifactError):
            Session(damaged)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        damaged.write_bytes(flipped)
        with pytest.raises(ArtifactError):
            Session(damaged)
    damaged.write_bytes(whole[: len(whole) // 2] + whole[-SEAL_BYTES:])
    with pytest.raises(ArtifactError, match="is damaged: its SHA-256 is"):
        Session(damaged)


@pytest.mark.parametrize(
    ("replacements", "message"),
    [
        ({'"format":1,"versions"': '"format":2,"versions"'}, "the manifest has format 2"),
        (
            {'"shape":[4,5]': '"shape":[4,6]'},
            r"tensor 'values' .* is float32 \[4, 5\], its mani",
        ),
        ({'"shape":[2,3],"dtype":"float32"': '"shape":[2,3],"dtype":"float64"'}, "'logits'"),
        ({'"methods":{"train_step"': '"methods":{"train_stop"'}, "has no 'train_step'"),
        ({'{"format":1': '["format":1'}, r"model\.pte: the manifest is not JSON"),
        (
            {LR: " " * len(LR)},
            "'train_step' has 6 inputs and 3 outputs, its manifest says 5 and 3",
        ),
        ({'"learning_rate"': '"input"'.ljust(15)}, r"no common batch dimension .*'lr': \[\]"),
    ],
)
def test_manifest_that_lies(
    tmp_path: Path, replacements: Mapping[str, str], message: str
) -> None:
    file = write_tiny_program(tmp_path / "model.pte", replacements)
    with pytest.raises(ArtifactError, match=message):
        Session(file.path)


def test_sealed_program_without_manifest(tmp_path: Path) -> None:
    program = tiny_program().replace(b"manifest\0", b"manifesT\0")
    file = write_program(tmp_path / "model.pte", program)
    with pytest.raises(ArtifactError, match="it has no method 'manifest'"):
        Session(file.path)


def test_failure_in_the_runtime_is_named(path: Path) -> None:
    program = LoadedProgram(path)
    with pytest.raises(ArtifactError, match="the runtime failed in method 'predict'"):
        program.run("predict", [torch.zeros(1)])
