"""Small inputs and slow references, for tests of detectors, loss terms, data sets and metrics of one's own.

Dimensions: ``L`` decoder layers, ``B`` batch, ``Q`` queries, ``T`` targets of an image (padded), ``C`` classes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from detr_jax.config import (
    Block,
    Config,
    DataConfig,
    DeformableDETRConfig,
    DETRConfig,
    DINOConfig,
    EvaluationConfig,
    LossConfig,
    Matcher,
    Norm,
    OptimizerConfig,
    ResNetConfig,
    Schedule,
    ShapesConfig,
    Stem,
    TrainingConfig,
    dino_terms,
    focal_costs,
    focal_terms,
)
from detr_jax.structures import UNMATCHED, BatchInputs, Predictions, Targets

_TINY_DEFORMABLE: dict[str, Any] = {
    "num_classes": 3,
    "num_queries": 6,
    "hidden_dim": 16,
    "num_heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "feedforward_dim": 32,
    "backbone_levels": 2,
    "num_points": 2,
}


def tiny_config() -> Config:
    """A configuration that trains in seconds: shapes of 24 to 32 pixels, few channels, one or two layers, dropout.

    It matches on the device, so that the compilation cache can keep the compiled step.
    """
    return Config(
        model=DETRConfig(
            backbone=ResNetConfig(block=Block.BASIC, blocks=(1, 1), width=8, stem=Stem.SMALL, norm=Norm.GROUP),
            num_classes=3,
            num_queries=5,
            hidden_dim=16,
            num_heads=2,
            encoder_layers=1,
            decoder_layers=2,
            feedforward_dim=32,
            dropout=0.1,
        ),
        data=DataConfig(
            dataset="shapes",
            sources={"shapes": ShapesConfig(train_images=48, val_images=10, min_size=24, max_size=32)},
            train_short_sides=(),
            crop_short_sides=(),
            val_short_side=0,
            train_buckets=((32, 32),),
            val_buckets=((32, 32),),
        ),
        loss=LossConfig(matcher=Matcher.DEVICE),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, backbone_learning_rate=1e-4, schedule=Schedule.COSINE, warmup_steps=2, frozen=()
        ),
        training=TrainingConfig(batch_size=8, steps=12, ema_decay=0.9, log_every=4, checkpoint_every=5),
        evaluation=EvaluationConfig(every_epochs=1, batch_size=4, pictures=4, snapshots=3),
    )


def tiny_deformable_config(**fields: Any) -> Config:
    """`tiny_config` with a Deformable DETR of two levels of the backbone and an extra one; keywords override fields."""
    config = tiny_config()
    model = DeformableDETRConfig(dropout=0.1, **_TINY_DEFORMABLE, backbone=config.model.backbone)
    config.model = dataclasses.replace(model, **fields)
    config.loss = LossConfig(terms=focal_terms(), costs=focal_costs(), matcher=Matcher.DEVICE)
    return config


def tiny_dino_config(**fields: Any) -> Config:
    """`tiny_deformable_config` with a DINO that has 12 denoising queries; keywords override fields."""
    config = tiny_config()
    model = DINOConfig(denoising_queries=12, **_TINY_DEFORMABLE, backbone=config.model.backbone)
    config.model = dataclasses.replace(model, **fields)
    config.loss = LossConfig(terms=dino_terms(), costs=focal_costs(), matcher=Matcher.DEVICE)
    return config


def random_boxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Boxes [*shape, 4] float32 inside the image, cxcywh in 0..1, with sides of 0.1 to 0.5."""
    sides = rng.uniform(0.1, 0.5, (*shape, 2))
    centers = rng.uniform(sides / 2, 1 - sides / 2)
    return np.concatenate([centers, sides], axis=-1).astype(np.float32)


def random_targets(
    rng: np.random.Generator, counts: Sequence[int], *, num_classes: int, max_objects: int | None = None
) -> Targets:
    """Targets of a batch with ``counts`` objects in its images.

    The padding holds random values, because a loss must not depend on it.

    Args:
      max_objects: T; by default the largest count, at least 1.
    """
    room = max(1, *counts) if max_objects is None else max_objects
    labels = rng.integers(0, num_classes, (len(counts), room))
    return Targets(
        jnp.asarray(random_boxes(rng, len(counts), room)),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(counts, jnp.int32),
    )


def random_predictions(
    rng: np.random.Generator, *, layers: int, batch: int, queries: int, num_logits: int
) -> Predictions:
    """Predictions with logits [L, B, Q, num_logits] and boxes [L, B, Q, 4]; ``num_logits`` counts "no object"."""
    logits = rng.normal(size=(layers, batch, queries, num_logits))
    return Predictions(jnp.asarray(logits, jnp.float32), jnp.asarray(random_boxes(rng, layers, batch, queries)))


def random_batch(
    rng: np.random.Generator, counts: Sequence[int], *, bucket: tuple[int, int], num_classes: int
) -> BatchInputs:
    """Images of random sizes in a bucket (height, width) in pixels, with ``counts`` objects; numpy and JAX arrays.

    Each image has at least half of the sides of the bucket. The padding is zero, as it is in training.
    """
    batch = len(counts)
    sizes = np.stack([rng.integers(-(-side // 2), side + 1, batch) for side in bucket], axis=1).astype(np.int32)
    images = np.zeros((batch, *bucket, 3), np.uint8)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:height, :width] = rng.integers(0, 256, (height, width, 3))
    return BatchInputs(images, sizes, random_targets(rng, counts, num_classes=num_classes))


def reference_match(cost: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The assignment of lowest total cost, image by image with scipy, in plain numpy.

    Args:
      cost: [L, B, Q, T].
      count: [B], the real targets of each image.

    Returns:
      [L, B, T] int32, the query of each target; -1 for padding, and for targets that found no query.
    """
    layers, batch, _, targets = cost.shape
    matched_query = np.full((layers, batch, targets), UNMATCHED, np.int32)
    for layer, image in np.ndindex(layers, batch):
        queries, found = linear_sum_assignment(np.asarray(cost[layer, image, :, : count[image]], np.float64))
        matched_query[layer, image, found] = queries
    return matched_query


def reference_giou(a_xyxy: Sequence[float], b_xyxy: Sequence[float]) -> float:
    """Generalised IoU of two boxes (Rezatofighi et al., 2019, algorithm 1), number by number."""
    ax0, ay0, ax1, ay1 = map(float, a_xyxy)
    bx0, by0, bx1, by1 = map(float, b_xyxy)
    width, height = min(ax1, bx1) - max(ax0, bx0), min(ay1, by1) - max(ay0, by0)
    intersection = width * height if width > 0 and height > 0 else 0.0
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - intersection
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return intersection / union - (hull - union) / hull
