"""The set loss over all groups of predictions (DETR, section 3.1; auxiliary losses: appendix A.2).

Dimensions: ``L`` decoder layers, ``B`` batch, ``Q`` object queries, ``T`` targets of an image (padded), ``C`` classes.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from detr_jax.config import LossConfig, LossTerm
from detr_jax.losses.masks import mask_losses
from detr_jax.losses.matched import Matched
from detr_jax.matching import UNMATCHED, match, matching_cost
from detr_jax.models.detector import DetectorModule
from detr_jax.returned import check_shape
from detr_jax.structures import Array, Denoising, Outputs, Predictions, Targets


class _Group(NamedTuple):
    suffix: str
    """What the names of its terms end with in the log."""
    matched: Matched


def set_loss(
    outputs: Outputs | Predictions,
    targets: Targets,
    config: LossConfig,
    *,
    mesh: Mesh | None = None,
    batch_counts: Int[Array, " N"] | None = None,
    detector: DetectorModule | None = None,
    valid_sizes: Int[Array, "B 2"] | None = None,
) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
    """Match the predictions to the targets and compute the loss.

    The loss is the sum of ``weight * term`` over ``config.terms`` and over all layers: the last decoder layer, with
    ``config.auxiliary`` the layers before it, and if there are any the encoder's proposals and the denoising queries.

    Args:
      outputs: what the detector returned, or its predictions [L, B, Q, ...].
      targets: boxes [B, T, 4] cxcywh in 0..1, labels [B, T], count [B].
      mesh: the mesh over whose axis "data" the batch is sharded, if it is.
      batch_counts: for a micro-batch, ``targets.count`` [N] of the whole batch, so that losses and gradients of
        micro-batches add up to those of the whole batch. By default ``targets.count``.
      detector: the detector of the outputs. Only terms of masks need it.
      valid_sizes: [B, 2] int, valid (height, width) of each image in pixels. Only terms of masks need it.

    Returns:
      The loss [] and the terms for the log, all [] float32 and without their weights. A term ``giou`` is logged as
      ``loss_giou`` for the last layer, ``loss_giou_0``, ``loss_giou_1`` ... for the layers before it, ``loss_giou_enc``
      for proposals and ``loss_giou_dn`` for denoising queries. Diagnostics are logged under their own names, for the
      last layer.

    Raises:
      ConfigError: a term or a cost returned an array of another shape than its base class documents.
      ValueError: a term needs masks, and the detector, its mask features or the masks of the targets are missing.
    """
    outputs = Outputs(outputs) if isinstance(outputs, Predictions) else outputs
    counts = targets.count if batch_counts is None else batch_counts
    groups = list(_groups(outputs, targets, config, mesh, counts))
    of_layers = {name: term for name, term in config.terms.items() if name not in config.mask_terms}
    loss = jnp.zeros(())
    logged: dict[str, jax.Array] = {}
    for suffix, matched in groups:
        values = {name: _computed(name, term, matched) for name, term in of_layers.items() if not term.diagnostic}
        loss = loss + sum((config.terms[name].weight * value.sum() for name, value in values.items()), jnp.zeros(()))
        for name, value in values.items():
            logged |= _by_layer(f"loss_{name}{suffix}", value)
    last = _last_layer(groups[0].matched)
    for name, value in _of_masks(config, last, outputs, detector, valid_sizes).items():
        loss = loss + config.terms[name].weight * value
        logged[f"loss_{name}"] = value
    logged |= {name: _computed(name, term, last)[0] for name, term in of_layers.items() if term.diagnostic}
    return loss, jax.lax.stop_gradient(logged)


def _of_masks(
    config: LossConfig,
    last: Matched,
    outputs: Outputs,
    detector: DetectorModule | None,
    valid_sizes: Int[Array, "B 2"] | None,
) -> dict[str, jax.Array]:
    """The mask terms of the last layer by name."""
    if not (terms := config.mask_terms):
        return {}
    if last.targets.masks is None or outputs.mask_features is None or detector is None or valid_sizes is None:
        raise ValueError(
            f"The loss terms {', '.join(terms)} need masks: targets with masks, outputs with mask_features, the "
            "detector, and valid_sizes."
        )
    return mask_losses(terms, last, detector, outputs.mask_features, valid_sizes)


def _computed(name: str, term: LossTerm, matched: Matched) -> jax.Array:
    """The values of a term, checked to be [L]."""
    value = term.compute(matched)
    check_shape(value, matched.predictions.logits.shape[:1], f"loss.terms.{name}", term, "L")
    return value


def _groups(
    outputs: Outputs, targets: Targets, config: LossConfig, mesh: Mesh | None, counts: Int[Array, " N"]
) -> Iterator[_Group]:
    """The decoder layers, and if there are any the proposals and the denoising queries, each with its matching."""

    def matched_by_cost(predictions: Predictions, targets: Targets) -> Matched:
        cost = matching_cost(predictions, targets, config.costs)
        queries = match(cost, targets.count, config.matcher, mesh, absent=predictions.absent)
        return Matched(predictions, targets, queries, counts, config.classification)

    layers = outputs.layers if config.auxiliary else _last(outputs.layers)
    yield _Group("", matched_by_cost(layers, targets))
    if outputs.proposals is not None:
        wanted = targets
        if outputs.class_agnostic_proposals:
            wanted = dataclasses.replace(targets, labels=jnp.zeros_like(targets.labels))
        yield _Group("_enc", matched_by_cost(outputs.proposals, wanted))
    if outputs.denoising is not None:
        predictions = outputs.denoising.predictions
        layers = predictions if config.auxiliary else _last(predictions)
        yield _Group("_dn", _matched_by_construction(outputs.denoising, layers, targets, config, counts))


def _matched_by_construction(
    denoising: Denoising, layers: Predictions, targets: Targets, config: LossConfig, counts: Int[Array, " N"]
) -> Matched:
    """Denoising queries with their targets. All sums are divided by the number of queries that a target has."""

    def of_queries(x: Array) -> jax.Array:
        index = denoising.target.reshape(*denoising.target.shape, *[1] * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=1)

    found = denoising.matched_query != UNMATCHED
    repeated = Targets(of_queries(targets.boxes), of_queries(targets.labels), found.sum(axis=1).astype(jnp.int32))
    query = denoising.matched_query[None]
    query = jnp.broadcast_to(query, (layers.logits.shape[0], *query.shape[1:]))
    return Matched(layers, repeated, query, counts * denoising.num_groups, config.classification)


def _last(predictions: Predictions) -> Predictions:
    """The predictions of the last layer, [1, B, Q, ...]."""
    return jax.tree.map(lambda x: x[-1:], predictions)


def _last_layer(matched: Matched) -> Matched:
    return Matched(
        _last(matched.predictions),
        matched.targets,
        matched.matched_query[-1:],
        matched.batch_counts,
        matched.classification,
    )


def _by_layer(name: str, values: jax.Array) -> dict[str, jax.Array]:
    """The values [L] of a term by name: the last layer's has no number."""
    earlier = {f"{name}_{layer}": values[layer] for layer in range(values.shape[0] - 1)}
    return {name: values[-1]} | earlier
