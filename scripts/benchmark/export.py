"""Makes one file that `scripts/bench.py` keeps, in a process of its own.

The batch that all variants of a work share, a program of ours, one of stock ExecuTorch, or the
network that a peer builds.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from pockmobile.artifact.files import atomic_write
from pockmobile.artifact.program import write_program
from pockmobile.errors import PockmobileError
from scripts.benchmark.inputs import read_batch, read_statistics, write_inputs
from scripts.benchmark.variants import Exported, Kind, Order, Precision, ProgramInfo, to_line
from scripts.benchmark.worker import peak_bytes
from scripts.benchmark.works import WORKS, settled_model

_OURS: Final[tuple[Kind, ...]] = ("ours", "split", "int8", "int4")


def main() -> None:
    """Makes what the one argument, an order as JSON, says."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    order = Order(**json.loads(sys.argv[1]))
    try:
        _make(order)
    except PockmobileError as error:
        # The last line of the log, which is told below the table.
        sys.exit(str(error))


def _make(order: Order) -> None:
    if order.kind == "inputs":
        write_inputs(Path(order.path), WORKS[order.work], order.batch)
    else:
        _write_program(order)


def _write_program(order: Order) -> None:
    export = _exporter(order)
    start = time.perf_counter()
    model = settled_model(WORKS[order.work], read_statistics(order.inputs))
    exported = export(model, read_batch(order.inputs), order.detail)
    write = write_program if order.kind in _OURS else atomic_write
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


def _exporter(order: Order) -> Callable[[nn.Module, tuple[Tensor, Tensor], str], Exported]:
    """Returns what exports; it imports no more, which would be timed as the export."""
    if order.kind == "network":
        from scripts.benchmark.network import export_network

        return export_network
    if order.kind == "stock":
        from scripts.benchmark.stock_export import export_stock

        return export_stock
    from scripts.benchmark.our_export import export_ours

    kind = order.kind
    held: Precision = kind if kind in ("int8", "int4") else "fp32"
    return partial(
        export_ours, split=kind == "split", frozen_weights=held, without=order.without
    )


if __name__ == "__main__":
    main()
