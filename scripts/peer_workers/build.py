"""Builds a peer's training program from a network, in a process of the peer's interpreter."""

import json
import sys
import time
from importlib import import_module
from pathlib import Path

from pockmobile.artifact.files import atomic_write
from scripts.benchmark.variants import Order, ProgramInfo, to_line
from scripts.benchmark.worker import ENGINES, peak_bytes
from scripts.peer_workers.network import read_batch, read_network


def main() -> None:
    """Makes what the one argument, an order as JSON, says; then its `ProgramInfo`."""
    order = Order(**json.loads(sys.argv[1]))
    builder = import_module(f"{ENGINES[order.kind]}_build")
    start = time.perf_counter()
    network = read_network(order.detail)
    builder.build(network, read_batch(order.inputs), Path(order.path))
    info = ProgramInfo(
        seconds=time.perf_counter() - start,
        peak_bytes=peak_bytes(),
        planned_bytes=None,
        workspace_bytes=None,
        parts=dict.fromkeys(network.trained),
    )
    atomic_write(order.info_path, to_line(info).encode())


if __name__ == "__main__":
    main()
