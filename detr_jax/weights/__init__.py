"""Weights of other frameworks: download them, import them as a model, or start a training from them."""

from detr_jax.weights.downloads import download as download
from detr_jax.weights.files import WeightsError as WeightsError
from detr_jax.weights.layout import Layout as Layout
from detr_jax.weights.layouts import LAYOUTS as LAYOUTS
from detr_jax.weights.merging import Outcome as Outcome
from detr_jax.weights.merging import merge_pretrained as merge_pretrained
from detr_jax.weights.merging import outcome_table as outcome_table
from detr_jax.weights.names import check_is_path as check_is_path
from detr_jax.weights.official import OFFICIAL as OFFICIAL
from detr_jax.weights.pretrained import ImportedWeights as ImportedWeights
from detr_jax.weights.pretrained import load_pretrained as load_pretrained
from detr_jax.weights.pretrained import read_pretrained as read_pretrained
