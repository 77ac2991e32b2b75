"""Writes a training run of an earlier version, and what that version computes with it, for test_earlier_version.py.

The script runs on commit bab6b0b, the last one before detectors, losses and data sources became parts of the
configuration. A later version cannot run it, and must not: the files are the answers of the earlier one. Command, with
CHECKOUT a checkout of that commit::

    PYTHONPATH=CHECKOUT python tests/earlier_version/make_fixtures.py

It writes next to itself:

* ``workdir.tar.xz``: the workdir of a run of 12 steps that was killed after its validation at step 6, without
  TensorBoard files;
* ``continued.jsonl``: the ``metrics.jsonl`` of the same run when it was resumed from there to its end;
* ``predictions.npz``: two images, and the logits, boxes and detections of the checkpoint;
* ``config.json``: a configuration in which no field has its default value. It describes no run.
"""

import dataclasses
import importlib.metadata
import os
import shutil
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (  # those of tests/conftest.py
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jax").startswith("0.10.")
)

import jax.numpy as jnp
import numpy as np

from detr_jax import Detector
from detr_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ShapesConfig,
    TrainingConfig,
    check_fields,
    to_json,
)
from detr_jax.training.best import Best
from detr_jax.training.loop import train

FOLDER = Path(__file__).parent
SIZES = ((29, 24), (38, 33))  # (height, width) of the images, one per bucket
LEAST_GAP = 1e-4  # between two scores of an image, so that rounding cannot change their order


def run_config() -> Config:
    """A detector that trains in seconds, with EMA, dropout, two buckets and weights that are not the defaults."""
    buckets = ((32, 32), (40, 40))
    return Config(
        model=ModelConfig(
            backbone=BackboneConfig(block="basic", blocks=(1, 1), width=8, stem="small", norm="group"),
            num_classes=3,
            num_queries=6,
            hidden_dim=32,
            num_heads=4,
            encoder_layers=1,
            decoder_layers=2,
            feedforward_dim=48,
            dropout=0.1,
        ),
        data=DataConfig(
            dataset="shapes",
            shapes=ShapesConfig(train_images=48, val_images=12, min_size=24, max_size=40, max_objects=3, seed=5),
            train_short_sides=(),
            crop_short_sides=(),
            val_short_side=0,
            train_buckets=buckets,
            val_buckets=buckets,
        ),
        loss=LossConfig(
            matcher="device",
            class_weight=1.5,
            bbox_weight=4.0,
            giou_weight=3.0,
            cost_class=2.0,
            cost_bbox=6.0,
            cost_giou=2.5,
            eos_coefficient=0.2,
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, backbone_learning_rate=5e-4, schedule="cosine", warmup_steps=2, frozen=()
        ),
        training=TrainingConfig(batch_size=8, steps=12, seed=3, ema_decay=0.9, log_every=1, checkpoint_every=100),
        evaluation=EvaluationConfig(every_epochs=1, batch_size=4, pictures=2, snapshots=0),
    )


def changed_config() -> Config:
    """A configuration in which every field has another value than by default."""
    changed = _changed(Config(), "")
    check_fields(changed)
    return changed


CHOSEN: dict[str, Any] = {  # values of fields for which a rule would give a wrong one
    "model.backbone.block": "basic",
    "model.backbone.stem": "small",
    "model.backbone.norm": "group",
    "model.backbone.width": 68,
    "model.hidden_dim": 264,
    "model.num_heads": 11,
    "optimizer.beta1": 0.8,
    "optimizer.beta2": 0.95,
    "training.batch_size": 32,
    "model.position_embedding": "learned",
    "model.dtype": "bfloat16",
    "model.remat": "backbone",
    "loss.matcher": "device",
    "data.dataset": "voc",
    "data.exif": "apply",
    "data.yolo_rows": "polygon",
    "data.voc_one_based": "true",
    "data.tfds_name": "voc/2007",
    "data.shapes.kinds": ("ring", "cross"),
    "data.train_buckets": ((640, 672), (672, 640)),
    "data.val_buckets": ((704, 736),),
    "data.resize_rounding": "nearest",
    "data.on_error": "skip",
    "optimizer.schedule": "cosine",
    "optimizer.frozen": ("backbone/stem",),
    "training.steps": 4321,
}


def _changed(node: Any, path: str) -> Any:
    """A part of a configuration with other values: chosen ones, or the default plus a little, or its opposite."""
    values = {}
    for field in dataclasses.fields(node):
        name, value = f"{path}{field.name}", getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            values[field.name] = _changed(value, f"{name}.")
        elif name in CHOSEN:
            values[field.name] = CHOSEN[name]
        elif isinstance(value, bool):
            values[field.name] = not value
        elif isinstance(value, str):
            values[field.name] = f"a/{field.name}"
        elif isinstance(value, tuple):
            values[field.name] = tuple(x + type(x)(1) for x in value[:3])
        elif isinstance(value, float):
            values[field.name] = value + 0.125
        else:
            values[field.name] = value + 3
        assert values[field.name] != value, name
    return type(node)(**values)


class _KilledError(Exception):
    """Ends a run like a crash."""


def write_run(workdir: Path) -> None:
    """Trains until the validation at step 6 is done and keeps the workdir, then resumes it and keeps the log."""
    config, add = run_config(), Best.add

    def add_and_die(self: Best, step: int, average_precision: float | None) -> None:
        add(self, step, average_precision)
        raise _KilledError

    Best.add = add_and_die
    with suppress(_KilledError):
        train(config, workdir)
    Best.add = add
    with tarfile.open(FOLDER / "workdir.tar.xz", "w:xz", preset=9) as archive:
        for path in sorted(workdir.iterdir()):
            if path.name != "tensorboard":
                archive.add(path, path.name)
    train(config, workdir)
    shutil.copy(workdir / "metrics.jsonl", FOLDER / "continued.jsonl")


def write_predictions() -> None:
    """Writes images and the answers of the checkpoint, for images whose scores are clearly apart."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(FOLDER / "workdir.tar.xz") as archive:
        archive.extractall(folder, filter="data")
        detector = Detector.from_checkpoint(folder)
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
        found = detector.predict(images, threshold=0)
        if min(-np.diff(one.scores).max() for one in found) > LEAST_GAP:
            break
    content = {}
    for i, (image, bucket, one) in enumerate(zip(images, detector.canvases, found, strict=True)):
        padded = np.zeros((1, *bucket, 3), np.uint8)
        padded[0, : image.shape[0], : image.shape[1]] = image
        sizes = jnp.array([image.shape[:2]], jnp.int32)
        predictions = detector.model(detector.model.normalize(jnp.asarray(padded), sizes), sizes)
        answers = {"image": image, "padded": padded, "logits": predictions.logits, "layer_boxes": predictions.boxes}
        answers |= {"boxes": one.boxes, "scores": one.scores, "labels": one.labels}
        content |= {f"{name}{i}": np.asarray(values) for name, values in answers.items()}
    np.savez_compressed(FOLDER / "predictions.npz", **content)


def main() -> None:
    """Writes all files again."""
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder))
    write_predictions()
    (FOLDER / "config.json").write_text(to_json(changed_config()) + "\n")


if __name__ == "__main__":
    main()
