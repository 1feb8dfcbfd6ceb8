"""The peers that train on phones, and the environment in which each runs."""

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from scripts.benchmark.variants import VariantError, last_line

DEFAULT_FOLDER: Final = Path("~/.cache/pockmobile/peers")
REQUIREMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "onnxruntime": (
        "onnxruntime-training==1.19.2",
        "onnx==1.16.2",
        "numpy==1.26.4",
        "safetensors==0.5.3",
    ),
    "mnn": ("MNN==3.6.1", "numpy==2.4.6", "safetensors==0.5.3"),
    # Later versions convert a model that trains by TensorFlow's operators, but cannot run it.
    "litert": ("tensorflow-cpu==2.18.1", "numpy==2.0.2", "safetensors==0.5.3"),
}
"""What each peer's environment holds, by the name of its engine."""


@final
@dataclass(frozen=True)
class Environments:
    """Virtual environments in a folder, each made when it is first asked for."""

    folder: Path
    failures: dict[str, str] = field(default_factory=dict)

    def python(self, peer: str) -> Path:
        """Returns the interpreter of a peer's environment, which is made if it is missing.

        Raises:
            VariantError: it cannot be made; the message is pip's last line. It is not tried
                a second time.
        """
        if peer in self.failures:
            raise VariantError(self.failures[peer])
        requirements = REQUIREMENTS[peer]
        digest = hashlib.sha256(" ".join(requirements).encode()).hexdigest()[:8]
        folder = self.folder.expanduser().resolve() / f"{peer}-{digest}"
        python, complete = folder / "bin" / "python", folder / "complete"
        if complete.exists():
            return python
        print(f"installing {peer} in {folder} (once; minutes)", file=sys.stderr)
        log = folder.with_suffix(".log")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as file:
                make = [sys.executable, "-m", "venv", "--clear", str(folder)]
                install = [str(python), "-m", "pip", "install", "--quiet"]
                for command in (make, [*install, *requirements]):
                    subprocess.run(command, stdout=file, stderr=file, check=True)
            complete.touch()
        except OSError as error:
            self._fail(peer, f"{folder}: {error.strerror}")
        except subprocess.CalledProcessError as error:
            self._fail(peer, last_line(log, error.returncode))
        return python

    def _fail(self, peer: str, reason: str) -> None:
        self.failures[peer] = f"its environment cannot be made: {reason}"
        raise VariantError(self.failures[peer])
