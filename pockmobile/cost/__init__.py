"""Predicts what a plan's training step needs, without lowering it."""

from pockmobile.cost.build import cost_model
from pockmobile.cost.estimate import Estimate
from pockmobile.cost.memory import Moment
from pockmobile.cost.model import CostModel
from pockmobile.cost.rates import RATES
from pockmobile.cost.work import Work

__all__ = ["RATES", "CostModel", "Estimate", "Moment", "Work", "cost_model"]
