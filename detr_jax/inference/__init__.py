"""Inference: one `predict` function for every detector, and `Detector`, which takes images of any size."""

from detr_jax.inference.attention import AttentionError as AttentionError
from detr_jax.inference.batching import Answer as Answer
from detr_jax.inference.detector import Detector as Detector
from detr_jax.inference.notes import DARK as DARK
from detr_jax.inference.notes import FIRST_FRAME as FIRST_FRAME
from detr_jax.inference.notes import SHRUNK as SHRUNK
from detr_jax.inference.notes import THIN as THIN
from detr_jax.inference.notes import TINY as TINY
from detr_jax.inference.predict import check_scores as check_scores
from detr_jax.inference.predict import create_predict_step as create_predict_step
