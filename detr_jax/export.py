"""Export of trained detectors as StableHLO artefacts, which run without this package.

An artefact is a folder with these files:

* ``model_HxW.stablehlo``: one program per bucket, for any batch size and each of the chosen platforms. A program is
  compiled when it is first called.
* ``weights.npz``: the parameters, if they are not inside the programs.
* ``export.json``: the description of the artefact.
* ``labels.json``: the class names.
* ``loader.py``: runs the programs. It needs only jax, numpy, and flatbuffers, with which jax reads the programs.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import detr_jax
from detr_jax.config import Config, check_buckets
from detr_jax.data.placement import prediction_buckets
from detr_jax.inference.predict import predict, predict_masks
from detr_jax.memory import arrays_text, fitting
from detr_jax.models.detector import DetectorModule

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
WEIGHTS = "weights.npz"
_OVER_LIMIT = 5  # pixels by which rounding can carry the long side past its limit, up to an aspect ratio of 10 to 1
_LOADER = Path(__file__).with_name("export_loader.py")


class ExportError(ValueError):
    """An artefact cannot be written; the message gives the reason and what would be right."""


def export_model(
    model: DetectorModule,
    config: Config,
    out: str | Path,
    *,
    buckets: Sequence[tuple[int, int]] = (),
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    weights_beside: bool = False,
    class_names: Mapping[int, str] | None = None,
    category_ids: Mapping[int, int] | None = None,
    masks: bool = False,
) -> list[Path]:
    """Writes an artefact.

    Args:
      model: a detector. Only with compute type float32 does the artefact return the same detections as the detector.
      config: the configuration of the detector. It defines how images are resized.
      out: a new folder.
      buckets: shapes (height, width) in pixels that images are padded to, multiples of the model's stride; by default
        `default_buckets`.
      platforms: some of `PLATFORMS`. The artefact runs only on these.
      weights_beside: write the weights once to a file of their own instead of into each program.
      class_names: name by label.
      category_ids: category id by label. The artefact returns these ids as labels. It is empty if the labels are the
        ids.
      masks: the artefact also returns a mask for each detection.

    Returns:
      The files written.

    Raises:
      ExportError: the folder is not new, a platform is not known, or the detector predicts no masks.
      ConfigError: a bucket does not fit the model.
      OutOfMemoryError: the programs do not fit into memory.
    """
    out = Path(out)
    _check_destination(out, platforms)
    if masks and config.model.mask_stride is None:
        raise ExportError("The model predicts no masks, so they cannot be exported: it has no mask head (model.masks).")
    buckets = list(dict.fromkeys(buckets)) or default_buckets(config)
    check_buckets(config.model, buckets)
    size = arrays_text(nnx.as_pure(nnx.state(model)))
    advice = "Write the weights to a file of their own (--weights beside), or export fewer buckets at a time."
    with fitting(f"The export of {len(buckets)} bucket(s) of a model of {size},", advice):
        programs, weights = _programs(model, buckets, platforms, weights_beside, masks)

    out.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        (out / name).write_bytes(program)
    if weights_beside:
        np.savez(out / WEIGHTS, *weights)
    ids = category_ids or {}
    description = _description(config, buckets, platforms, ids) | {"weights": WEIGHTS if weights_beside else None}
    description["mask_stride"] = config.model.mask_stride if masks else None
    names = {str(ids.get(label, label)): name for label, name in sorted((class_names or {}).items())}
    (out / "export.json").write_text(json.dumps(description, indent=2))
    (out / "labels.json").write_text(json.dumps(names, indent=2, ensure_ascii=False), encoding="utf-8")
    shutil.copyfile(_LOADER, out / "loader.py")
    return sorted(out.iterdir())


def _check_destination(out: Path, platforms: Sequence[str]) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists already: give a new folder.")
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise ExportError(f"The platform {unknown[0]!r} is not known: choose among {', '.join(PLATFORMS)}.")
    if not platforms:
        raise ExportError(f"No platform is given: choose among {', '.join(PLATFORMS)}.")


def _description(
    config: Config, buckets: Sequence[tuple[int, int]], platforms: Sequence[str], category_ids: Mapping[int, int]
) -> dict[str, Any]:
    """The content of export.json, except for the file of the weights."""
    description = {
        "format": 1,
        "made_with": {"detr_jax": detr_jax.__version__, "jax": jax.__version__},
        "platforms": list(platforms),
        "buckets": [list(bucket) for bucket in buckets],
        "short_side": config.data.val_short_side,
        "max_long_side": config.data.max_long_side,
        "resize_rounding": config.data.resize_rounding,
        "num_classes": config.model.num_classes,
        "max_detections": config.model.max_detections,
    }
    if category_ids:
        description["category_ids"] = {str(label): category_id for label, category_id in sorted(category_ids.items())}
    return description


def _programs(
    model: DetectorModule,
    buckets: Sequence[tuple[int, int]],
    platforms: Sequence[str],
    weights_beside: bool,
    masks: bool,
) -> tuple[dict[str, bytes], list[np.ndarray]]:
    """The serialised program of each bucket by file name, and the weights in the order of the program's argument.

    A program takes images, valid sizes and original sizes, after the list of weights if they are beside it. It returns
    boxes, scores and labels, and with ``masks`` the mask logits [B, N, rows, columns] of the detections.
    """
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, nnx.as_pure(state)))

    def predict_with(weights: list[jax.Array], *inputs: jax.Array) -> tuple[jax.Array, ...]:
        module = nnx.merge(graph, jax.tree.unflatten(tree, weights))
        if not masks:
            found = predict(module, *inputs)
            return found.boxes, found.scores, found.labels
        found, logits = predict_masks(module, *inputs)
        return found.boxes, found.scores, found.labels, logits

    def predict_alone(*inputs: jax.Array) -> tuple[jax.Array, ...]:
        return predict_with(list(map(jnp.asarray, leaves)), *inputs)

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
    """The buckets of ``data.val_buckets``, or else the two that hold all resized images, as (height, width) in pixels.

    For images that are not resized, they are the buckets of a `detr_jax.Detector`, with ``data.max_long_side`` as the
    longest side.
    """
    data, stride = config.data, config.model.stride
    if data.val_buckets:
        return list(data.val_buckets)
    if not data.val_short_side:
        return prediction_buckets(config)
    short = -(-data.val_short_side // stride) * stride
    long = -(-(data.max_long_side + _OVER_LIMIT) // stride) * stride
    return list(dict.fromkeys([(short, max(short, long)), (max(short, long), short)]))
