"""Finds the plan with the most predicted gain under a budget, and the Pareto fronts."""

from pockmobile.search.budget import Budget, Cost
from pockmobile.search.enumeration import enumerate_best
from pockmobile.search.problem import Candidate
from pockmobile.search.search import SearchResult, search

__all__ = ["Budget", "Candidate", "Cost", "SearchResult", "enumerate_best", "search"]
