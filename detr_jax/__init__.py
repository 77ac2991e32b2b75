"""DETR, end-to-end object detection with transformers (Carion et al., 2020), in JAX and Flax NNX.

The public names below are imported when they are first used, so that ``import detr_jax`` is fast (PEP 562).
"""

import importlib as _importlib
import os as _os
import typing as _typing

if _typing.TYPE_CHECKING:
    from detr_jax import boxes as boxes
    from detr_jax import checkpoints as checkpoints
    from detr_jax import config as config
    from detr_jax import data as data
    from detr_jax import export as export
    from detr_jax import inference as inference
    from detr_jax import losses as losses
    from detr_jax import matching as matching
    from detr_jax import models as models
    from detr_jax import postprocess as postprocess
    from detr_jax import presets as presets
    from detr_jax import results as results
    from detr_jax import structures as structures
    from detr_jax import testing as testing
    from detr_jax import visualization as visualization
    from detr_jax import weights as weights
    from detr_jax.inference import Detector as Detector
    from detr_jax.results import ImageAttention as ImageAttention
    from detr_jax.results import ImageDetections as ImageDetections
    from detr_jax.results import ImageSampling as ImageSampling
    from detr_jax.training.loop import train as train

if "host_platform_device_count" in _os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in _os.environ:
    # Several simulated CPU devices share XLA's thread pool; a larger one keeps host callbacks from starving.
    # jax reads this when its backend starts (see detr_jax.matching.callbacks_may_starve).
    _os.environ.setdefault("NPROC", str(max(32, _os.cpu_count() or 1)))

__version__ = "0.1.0"

_MODULES = (
    *("boxes", "checkpoints", "config", "data", "export", "inference", "losses", "matching", "models"),
    *("postprocess", "presets", "results", "structures", "testing", "visualization", "weights"),
)
_MEMBERS = {
    "Detector": "inference",
    "ImageAttention": "results",
    "ImageSampling": "results",
    "ImageDetections": "results",
    "train": "training.loop",
}
"""The module of each class and function."""

__all__ = [*_MEMBERS, *_MODULES]


if not _typing.TYPE_CHECKING:  # which knows the names already, and would believe any other

    def __getattr__(name: str) -> _typing.Any:
        if name in _MODULES:
            return _importlib.import_module(f"detr_jax.{name}")
        if name in _MEMBERS:
            value = getattr(_importlib.import_module(f"detr_jax.{_MEMBERS[name]}"), name)
            globals()[name] = value  # the next use does not come here
            return value
        raise AttributeError(f"module 'detr_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
