"""Qualcomm's libraries are found where they are said to be, and never downloaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pockmobile import qualcomm
from pockmobile.errors import MissingLibraryError

_REMEDY = (
    "run pip install 'pockmobile[qnn]' (Linux, x86-64), or set QNN_SDK_ROOT to a folder that "
    "holds lib/x86_64-linux-clang/libQnnHtp.so"
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QNN_SDK_ROOT", "")
    monkeypatch.setattr(qualcomm, "_PACKAGE", "no_such_package")


def test_one_line_says_what_is_missing() -> None:
    expected = f"Qualcomm's libraries are missing; {_REMEDY}"
    assert qualcomm.missing() == expected
    with pytest.raises(MissingLibraryError) as caught:
        qualcomm.load_libraries.__wrapped__()
    assert str(caught.value) == expected


def test_a_wrong_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QNN_SDK_ROOT", str(tmp_path))
    missing = "lib/x86_64-linux-clang/libQnnHtp.so"
    assert qualcomm.missing() == (
        f"QNN_SDK_ROOT is '{tmp_path}', where {missing} is missing; {_REMEDY}"
    )


def test_libraries_that_do_not_work_are_told_from_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lib" / "x86_64-linux-clang"
    folder.mkdir(parents=True)
    for name in ("libQnnHtp.so", "libQnnSystem.so"):
        (folder / name).write_bytes(b"no library")
    monkeypatch.setenv("QNN_SDK_ROOT", str(tmp_path))
    assert qualcomm.missing() is None
    with pytest.raises(MissingLibraryError, match="do not work with this ExecuTorch"):
        qualcomm.load_libraries.__wrapped__()


def test_importing_us_keeps_executorch_from_downloading() -> None:
    code = "import os, pockmobile.qualcomm; print(repr(os.environ['QNN_SDK_ROOT']))"
    environment = {k: v for k, v in os.environ.items() if k != "QNN_SDK_ROOT"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "''"


def test_the_folder_of_symbolic_links_goes_with_the_process(tmp_path: Path) -> None:
    qualcomm._lay_out(tmp_path)
    root = Path(os.environ["QNN_SDK_ROOT"])
    assert (root / "lib" / "x86_64-linux-clang").resolve() == tmp_path.resolve()
    qualcomm._remove(root, os.getpid() + 1)  # A process that was forked from this one.
    assert root.exists()
    qualcomm._remove(root, os.getpid())
    assert not root.exists()
    assert tmp_path.exists()
