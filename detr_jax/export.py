"""Trained detectors as StableHLO artefacts that run without this package.

An artefact is a folder with one program a bucket, compiled when it is first called, for any batch size and for each of
the chosen platforms; its weights; ``export.json``, which describes it; ``labels.json``, the class names; and
``loader.py``, which runs it with jax and numpy (and flatbuffers, with which jax reads it) alone.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import detr_jax
from detr_jax.config import Config, ConfigError, check_buckets
from detr_jax.memory import arrays_text, fitting
from detr_jax.models.detr import DETR
from detr_jax.postprocess import detections
from detr_jax.structures import Detections

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
WEIGHTS = "weights.npz"
_OVER_LIMIT = 5  # pixels that rounding may carry the long side past its limit by, up to an aspect of 10 to 1
_LOADER = Path(__file__).with_name("export_loader.py")


class ExportError(ValueError):
    """An artefact that cannot be written; the message says why and what would be right."""


def export_model(
    model: DETR,
    config: Config,
    out: str | Path,
    *,
    buckets: Sequence[tuple[int, int]] = (),
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    weights_beside: bool = False,
    class_names: Mapping[int, str] | None = None,
    category_ids: Mapping[int, int] | None = None,
) -> list[Path]:
    """Writes an artefact.

    Args:
      model: a detector of compute type float32, for answers equal to its own.
      config: its configuration, which says how images are resized.
      out: a new folder.
      buckets: shapes (height, width) in pixels that images are padded to, multiples of the backbone's stride; by
        default `default_buckets`.
      platforms: of `PLATFORMS`; the artefact runs on these only.
      weights_beside: keep the weights in a file of their own, once for all buckets, in place of in each program.
      class_names: name by label.
      category_ids: category id by label, which the artefact's results have; empty if the labels are the ids.

    Returns:
      The files written.

    Raises:
      ExportError: the folder is not new, or a platform is not known.
      ConfigError: a bucket does not fit the model, or none is given and none follows from the configuration.
      OutOfMemoryError: the programs do not fit into memory.
    """
    out, stride = Path(out), config.model.backbone.stride
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists already: give a new folder.")
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise ExportError(f"The platform {unknown[0]!r} is not known: choose among {', '.join(PLATFORMS)}.")
    if not platforms:
        raise ExportError(f"No platform is given: choose among {', '.join(PLATFORMS)}.")
    buckets = list(dict.fromkeys(buckets)) or default_buckets(config)
    for bucket in buckets:
        if len(bucket) != 2 or any(side < 1 or side % stride for side in bucket):
            raise ConfigError(f"The bucket {bucket} must be a (height, width) of positive multiples of {stride}.")
    check_buckets(config.model, buckets)

    size = arrays_text(nnx.as_pure(nnx.state(model)))
    advice = "Keep the weights beside the programs (--weights beside), or export fewer buckets together."
    with fitting(f"The export of {len(buckets)} bucket(s) of a model of {size},", advice):
        programs, weights = _programs(model, buckets, platforms, weights_beside)

    out.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        (out / name).write_bytes(program)
    if weights_beside:
        np.savez(out / WEIGHTS, *weights)
    description = {
        "format": 1,
        "made_with": {"detr_jax": detr_jax.__version__, "jax": jax.__version__},
        "platforms": list(platforms),
        "buckets": [list(bucket) for bucket in buckets],
        "weights": WEIGHTS if weights_beside else None,
        "short_side": config.data.val_short_side,
        "max_long_side": config.data.max_long_side,
        "resize_rounding": config.data.resize_rounding,
        "num_classes": config.model.num_classes,
        "num_queries": config.model.num_queries,
    }
    ids = category_ids or {}
    if ids:
        description["category_ids"] = {str(label): category_id for label, category_id in sorted(ids.items())}
    names = {str(ids.get(label, label)): name for label, name in sorted((class_names or {}).items())}
    (out / "export.json").write_text(json.dumps(description, indent=2))
    (out / "labels.json").write_text(json.dumps(names, indent=2, ensure_ascii=False), encoding="utf-8")
    shutil.copyfile(_LOADER, out / "loader.py")
    return sorted(out.iterdir())


def _programs(
    model: DETR, buckets: Sequence[tuple[int, int]], platforms: Sequence[str], weights_beside: bool
) -> tuple[dict[str, bytes], list[np.ndarray]]:
    """The serialised program of each bucket by file name, and the weights in the order in which it takes them."""
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, nnx.as_pure(state)))

    def predict(weights: list[jax.Array], images: jax.Array, sizes: jax.Array, original_sizes: jax.Array) -> Detections:
        merged = nnx.merge(graph, jax.tree.unflatten(tree, weights))
        found = merged(merged.normalize(images, sizes), sizes)
        return detections(found.logits[-1], found.boxes[-1], original_sizes)

    def predict_alone(images: jax.Array, sizes: jax.Array, original_sizes: jax.Array) -> tuple[jax.Array, ...]:
        found = predict(list(map(jnp.asarray, leaves)), images, sizes, original_sizes)
        return found.boxes, found.scores, found.labels

    def predict_with(
        weights: list[jax.Array], images: jax.Array, sizes: jax.Array, original_sizes: jax.Array
    ) -> tuple[jax.Array, ...]:
        found = predict(weights, images, sizes, original_sizes)
        return found.boxes, found.scores, found.labels

    programs: dict[str, bytes] = {}
    for height, width in buckets:
        (batch,) = jax.export.symbolic_shape("batch")
        inputs = (
            jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8),
            jax.ShapeDtypeStruct((batch, 2), jnp.int32),
            jax.ShapeDtypeStruct((batch, 2), jnp.int32),
        )
        weights = ([jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],) if weights_beside else ()
        function = jax.jit(predict_with if weights_beside else predict_alone)
        exported = jax.export.export(function, platforms=list(platforms))(*weights, *inputs)
        programs[f"model_{height}x{width}.stablehlo"] = bytes(exported.serialize())
    return programs, leaves


def default_buckets(config: Config) -> list[tuple[int, int]]:
    """The buckets (height, width) of a configuration's validation; else the two that hold all resized images.

    Raises:
      ConfigError: images are not resized and no bucket is configured.
    """
    data, stride = config.data, config.model.backbone.stride
    if data.val_buckets:
        return list(data.val_buckets)
    if not data.val_short_side:
        raise ConfigError("This model reads images in their own size: give the bucket to pad them to, in pixels.")
    short = -(-data.val_short_side // stride) * stride
    long = -(-(data.max_long_side + _OVER_LIMIT) // stride) * stride
    return list(dict.fromkeys([(short, max(short, long)), (max(short, long), short)]))
