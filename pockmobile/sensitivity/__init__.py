"""Measures, by fine-tuning in eager PyTorch, what training each part of a model gives."""

from pockmobile.sensitivity.first_look import FirstLook, first_look
from pockmobile.sensitivity.plans import measure_plans
from pockmobile.sensitivity.prefix import cut_task
from pockmobile.sensitivity.schedule import Schedule
from pockmobile.sensitivity.sensitivity import (
    Contribution,
    Sensitivity,
    measure_sensitivity,
)
from pockmobile.sensitivity.task import Data, Task
from pockmobile.sensitivity.training import Outcome, fine_tune

__all__ = [
    "Contribution",
    "Data",
    "FirstLook",
    "Outcome",
    "Schedule",
    "Sensitivity",
    "Task",
    "cut_task",
    "fine_tune",
    "first_look",
    "measure_plans",
    "measure_sensitivity",
]
