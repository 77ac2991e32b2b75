"""DETR, end-to-end object detection with transformers (Carion et al., 2020), in JAX and Flax NNX."""

import os as _os

if "host_platform_device_count" in _os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in _os.environ:
    # Several simulated CPU devices share XLA's thread pool; a larger one keeps host callbacks from starving.
    # jax reads this when its backend starts (see detr_jax.matching.callbacks_may_starve).
    _os.environ.setdefault("NPROC", str(max(32, _os.cpu_count() or 1)))

from detr_jax import boxes as boxes
from detr_jax import config as config
from detr_jax import losses as losses
from detr_jax import matching as matching
from detr_jax import models as models
from detr_jax import weights as weights
from detr_jax.inference import Detector as Detector
from detr_jax.results import ImageDetections as ImageDetections

__version__ = "0.1.0"
