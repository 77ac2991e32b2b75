"""Bipartite matching of predictions and targets (DETR, section 3.1)."""

from detr_jax.matching.assignment import callbacks_may_starve as callbacks_may_starve
from detr_jax.matching.assignment import match as match
from detr_jax.matching.costs import matching_cost as matching_cost
from detr_jax.matching.host import solve_with_scipy as solve_with_scipy
from detr_jax.structures import UNMATCHED as UNMATCHED
from detr_jax.structures import Targets as Targets
