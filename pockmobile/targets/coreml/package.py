"""From a MIL program to a Core ML model package, in bytes that ExecuTorch's runtime reads."""

import contextlib
import gc
import hashlib
import json
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import coremltools as ct
from executorch.backends.apple.coreml import executorchcoreml

from pockmobile.targets.coreml.tools import quiet

_PASSES: Final = (
    "common::noop_elimination",
    "common::fuse_matmul_weight_bias",
    "common::dead_code_elimination",
)
"""Of coremltools' passes, those that find anything: the graph was simplified before. After
each, a program of thousands of operators is checked for seconds."""

_MODEL: Final = "model.mlpackage"


def write_package(
    program: Any, inputs: Sequence[str], outputs: Sequence[str], ios: int
) -> bytes:
    """Converts a MIL program into a model package, flattened into bytes.

    `inputs` and `outputs` are the names of the function's values, in the order in which the
    runtime passes them.
    """
    with quiet(), _old_objects_kept():
        model = ct.convert(
            program,
            source="milinternal",
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, f"iOS{ios}"),
            compute_precision=ct.precision.FLOAT32,  # As written: no casts are put in.
            pass_pipeline=ct.PassPipeline(list(_PASSES), pipeline_name="pockmobile"),
            skip_model_load=True,
        )
    description = model.get_spec().description
    found = [feature.name for feature in (*description.input, *description.output)]
    assert sorted(found) == sorted([*inputs, *outputs]), f"coremltools renamed {found}"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "lowered_module"  # The name is written, too.
        root.mkdir()
        model.save(str(root / _MODEL))
        _settle(root / _MODEL, model.get_spec())
        metadata = {
            "inputNames": list(inputs),
            "outputNames": list(outputs),
            "identifier": f"pockmobile_{_sha256(root)}",
        }
        (root / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
        flattened = executorchcoreml.flatten_directory_contents(str(root.resolve()))
    assert flattened, "the model package is empty"
    return bytes(flattened)


@contextlib.contextmanager
def _old_objects_kept() -> Iterator[None]:
    """Spares coremltools' own collection of garbage all that torch keeps: half a second."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _settle(package: Path, spec: Any) -> None:
    """Replaces random identifiers and orders: the same model gives the same bytes."""
    (model,) = package.rglob("*.mlmodel")
    model.write_bytes(spec.SerializeToString(deterministic=True))
    path = package / "Manifest.json"
    text = path.read_text(encoding="utf-8")
    for identifier, item in json.loads(text)["itemInfoEntries"].items():
        settled = str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])).upper()
        text = text.replace(identifier, settled)
    path.write_text(json.dumps(json.loads(text), indent=4, sort_keys=True), encoding="utf-8")


def _sha256(folder: Path) -> str:
    """Returns the hash of a folder: the runtime keeps what it compiled under this name."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
