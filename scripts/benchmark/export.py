"""Makes one file that `scripts/bench.py` keeps, in a process of its own.

The batch that all variants of a work share, a program of ours, or one of stock ExecuTorch.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor, nn

from pockmobile.artifact.files import atomic_write
from pockmobile.artifact.program import write_program
from scripts.benchmark.inputs import read_batch, read_statistics, write_inputs
from scripts.benchmark.variants import Exported, ProgramInfo, to_line
from scripts.benchmark.worker import peak_bytes
from scripts.benchmark.works import WORKS, settled_model


@final
@dataclass(frozen=True)
class Order:
    """What to make: the batch, or a program for the batch in the file `inputs`.

    `detail` is the plan of a program of ours, and how stock ExecuTorch lowers its own.
    """

    kind: Literal["inputs", "ours", "split", "stock"]
    work: str
    batch: int
    path: str
    inputs: str = ""
    detail: str = ""

    @property
    def info_path(self) -> Path:
        """Where a program's `ProgramInfo` lies; it is written last."""
        return Path(self.path).with_suffix(".json")


def main() -> int:
    """Makes what the one argument, an order as JSON, says."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    order = Order(**json.loads(sys.argv[1]))
    if order.kind == "inputs":
        write_inputs(Path(order.path), WORKS[order.work], order.batch)
    else:
        _write_program(order)
    return 0


def _write_program(order: Order) -> None:
    export = _exporter(order.kind)
    start = time.perf_counter()
    model = settled_model(WORKS[order.work], read_statistics(order.inputs))
    exported = export(model, read_batch(order.inputs), order.detail)
    write = atomic_write if order.kind == "stock" else write_program
    write(order.path, exported.buffer)
    info = ProgramInfo(
        seconds=time.perf_counter() - start,
        peak_bytes=peak_bytes(),
        planned_bytes=exported.planned_bytes,
        workspace_bytes=exported.workspace_bytes,
        parts=exported.parts,
        tied=exported.tied,
    )
    atomic_write(order.info_path, to_line(info).encode())


def _exporter(kind: str) -> Callable[[nn.Module, tuple[Tensor, Tensor], str], Exported]:
    """Returns what exports; it imports no more, which would be timed as the export."""
    if kind in ("ours", "split"):
        from scripts.benchmark.our_export import export_ours

        return partial(export_ours, split=kind == "split")
    from scripts.benchmark.stock_export import export_stock

    return export_stock


if __name__ == "__main__":
    sys.exit(main())
