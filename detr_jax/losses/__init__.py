"""The set loss: a weighted sum of named terms over the matched predictions of every decoder layer."""

from detr_jax.losses.masks import MatchedMasks as MatchedMasks
from detr_jax.losses.matched import Matched as Matched
from detr_jax.losses.set_loss import set_loss as set_loss
