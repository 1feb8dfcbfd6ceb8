"""Measures plans of a tiny task into a store; a test kills it."""

import sys
from pathlib import Path

from pockmobile.sensitivity import measure_plans
from tests.sensitivity.tiny_tasks import SLOW_SCHEDULE, all_plans, mlp_task

if __name__ == "__main__":
    task = mlp_task()
    measure_plans(
        task,
        all_plans(task),
        SLOW_SCHEDULE,
        num_repeats=20,
        store=Path(sys.argv[1]),
        num_processes=2,
    )
