"""The set loss against numbers worked out by hand and against plain numpy with scipy's matching."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from test_boxes import giou_by_definition

from detr_jax.config import LossConfig
from detr_jax.losses import normalizers, set_loss
from detr_jax.matching import Targets
from detr_jax.models import Predictions

CLASSES, QUERIES, LAYERS, MOST_BOXES = 4, 6, 3, 10
COUNTS = {"some boxes": [2, 0, 3], "no box at all": [0, 0, 0], "more boxes than queries": [9, 1, 6]}
any_counts = pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS.keys())


def random_batch(rng, count):
    """Predictions, and targets whose padding holds garbage."""

    def boxes(*shape):
        return jnp.asarray(rng.uniform(0.1, 0.5, (*shape, 4)), jnp.float32)

    batch = len(count)
    logits = jnp.asarray(rng.normal(size=(LAYERS, batch, QUERIES, CLASSES + 1)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, CLASSES, (batch, MOST_BOXES)), jnp.int32)
    targets = Targets(boxes(batch, MOST_BOXES), labels, jnp.asarray(count, jnp.int32))
    return Predictions(logits, boxes(LAYERS, batch, QUERIES)), targets


@functools.partial(jax.jit, static_argnames=("matcher", "auxiliary"))
def loss_and_gradient(predictions, targets, norms=None, *, matcher="scipy", auxiliary=True, **weights):
    """`set_loss` with its gradient, compiled once for all weights: (loss, terms), gradient."""

    def loss(predictions):
        config = LossConfig(matcher=matcher, auxiliary=auxiliary, **weights)
        return set_loss(predictions, targets, config, norms=norms)

    return jax.value_and_grad(loss, has_aux=True)(predictions)


def corners(box):
    cx, cy, w, h = map(float, box)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def reference_layer(logits, boxes, targets, config):
    """Terms of one layer, query by query in numpy: logits [B, Q, C + 1], boxes [B, Q, 4]."""
    nll_sum = weight_sum = l1_sum = giou_sum = cardinality = right = right_objects = matched = 0.0
    for image in range(len(logits)):
        exponentials = np.exp(logits[image])
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        n = targets.count[image]
        wanted, labels = targets.boxes[image, :n], targets.labels[image, :n]
        l1 = np.array([[np.abs(box - want).sum() for want in wanted] for box in boxes[image]])
        giou = np.array([[giou_by_definition(corners(b), corners(w)) for w in wanted] for b in boxes[image]])
        l1, giou = l1.reshape(len(l1), n), giou.reshape(len(l1), n)
        cost = -config.cost_class * probabilities[:, labels] + config.cost_bbox * l1 - config.cost_giou * giou
        pairs = list(zip(*linear_sum_assignment(cost), strict=True))
        label_of = {query: labels[target] for query, target in pairs}
        for query in range(len(probabilities)):
            weight = 1.0 if query in label_of else config.eos_coefficient
            nll_sum -= weight * np.log(probabilities[query, label_of.get(query, -1)])
            weight_sum += weight
        l1_sum += sum(l1[pair] for pair in pairs)
        giou_sum += sum(1 - giou[pair] for pair in pairs)
        matched += len(pairs)
        right += sum(logits[image, query].argmax() == label for query, label in label_of.items())
        right_objects += sum(logits[image, query, :-1].argmax() == label for query, label in label_of.items())
        cardinality += abs((logits[image].argmax(axis=1) != logits.shape[-1] - 1).sum() - n) / len(logits)
    boxes_in_all = max(targets.count.sum(), 1)
    return {
        "loss_ce": nll_sum / weight_sum,
        "loss_bbox": l1_sum / boxes_in_all,
        "loss_giou": giou_sum / boxes_in_all,
        "cardinality_error": cardinality,
        "class_error": 100 * (matched - right) / max(matched, 1),
        "class_accuracy": 100 * right_objects / max(matched, 1),
    }


def test_the_loss_of_a_small_example_is_the_one_worked_out_by_hand():
    """One class, two queries, two images; the first image holds one object, the second none."""
    target = [0.5, 0.5, 0.4, 0.4]
    near, far = [0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2]
    # probabilities of (object, no object): 1/4, 3/4 and 4/5, 1/5 in the first image,
    # 1/10, 9/10 and 4/5, 1/5 in the second
    logits = jnp.log(jnp.asarray([[[[1.0, 3.0], [4.0, 1.0]], [[1.0, 9.0], [4.0, 1.0]]]]))
    predictions = Predictions(logits, jnp.asarray([[[near, far], [near, far]]]))
    targets = Targets(
        jnp.asarray([[target], [[0.0] * 4]]), jnp.zeros((2, 1), jnp.int32), jnp.asarray([1, 0], jnp.int32)
    )
    (loss, terms), _ = loss_and_gradient(predictions, targets)
    # near costs -1/4 + 5 * 0.4 - 2 * 1/4 = 1.25; far costs -4/5 + 5 * 1.2 + 2 * 0.29/0.49 = 6.38: near is matched
    loss_bbox = 0.4  # |0.2 - 0.4| twice, one box
    loss_giou = 0.75  # 1 - 0.04 / 0.16, no hull beyond the union
    # nll: ln 4 of weight 1 for near; ln 5, ln(10/9), ln 5 of weight 0.1 for "no object"; weights 1.3 in all
    loss_ce = (math.log(4) + 0.1 * (math.log(5) + math.log(10 / 9) + math.log(5))) / 1.3
    expected = {
        "loss_ce": loss_ce,
        "loss_bbox": loss_bbox,
        "loss_giou": loss_giou,
        "cardinality_error": 0.5,  # 1 object seen for 1 box, 1 seen for none
        "class_error": 100.0,  # near holds "no object" for likelier
        "class_accuracy": 100.0,  # and has one real class to choose from
    }
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)
    assert float(loss) == pytest.approx(loss_ce + 5 * loss_bbox + 2 * loss_giou, rel=1e-5)


@any_counts
@pytest.mark.parametrize(("matcher", "auxiliary"), [("scipy", True), ("scipy", False), ("device", True)])
def test_the_loss_equals_plain_numpy_with_scipy(rng, count, auxiliary, matcher):
    names = [field.name for field in dataclasses.fields(LossConfig) if field.type is float]
    weights = dict(zip(names, rng.uniform(0.2, 3, len(names)).tolist(), strict=True))
    config = LossConfig(**weights)
    predictions, targets = random_batch(rng, count)
    (loss, terms), _ = loss_and_gradient(predictions, targets, matcher=matcher, auxiliary=auxiliary, **weights)

    logits, boxes = (np.asarray(x, np.float64) for x in (predictions.logits, predictions.boxes))
    layers = [
        reference_layer(*layer, jax.tree.map(np.asarray, targets), config) for layer in zip(logits, boxes, strict=True)
    ]
    *earlier, expected = layers
    if auxiliary:
        for i, layer in enumerate(earlier):
            expected |= {f"{name}_{i}": value for name, value in layer.items() if name.startswith("loss")}
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    scored = layers if auxiliary else layers[-1:]
    total = sum(
        weights[f"{part}_weight"] * one[f"loss_{term}"]
        for part, term in (("class", "ce"), ("bbox", "bbox"), ("giou", "giou"))
        for one in scored
    )
    assert float(loss) == pytest.approx(total, rel=1e-4)
    assert all(term.dtype == jnp.float32 and term.shape == () for term in (loss, *terms.values()))


@any_counts
def test_gradients_are_finite_and_reach_boxes_only_of_matched_queries(rng, count):
    predictions, targets = random_batch(rng, count)
    _, gradient = loss_and_gradient(predictions, targets)
    assert all(np.isfinite(part).all() for part in jax.tree.leaves(gradient))
    assert np.asarray(gradient.logits).any(axis=-1).all(), "every query has a class to learn"
    moved = np.asarray(gradient.boxes).any(axis=-1).sum(axis=-1)  # [L, B]
    np.testing.assert_array_equal(moved, np.broadcast_to(np.minimum(count, QUERIES), moved.shape))


def test_without_a_weight_no_object_costs_nothing(rng):
    predictions, targets = random_batch(rng, [0, 0, 0])
    (loss, terms), _ = loss_and_gradient(predictions, targets, eos_coefficient=0.0)
    assert float(loss) == 0.0
    assert all(np.isfinite(float(term)) for term in terms.values())


def test_the_weight_of_no_object_scales_its_part_of_the_gradient(rng):
    """Where weights are normalised by the same number, tenfold weight is tenfold gradient of unmatched queries."""
    predictions, targets = random_batch(rng, [2, 1, 0])
    norms = normalizers(targets.count, QUERIES, LossConfig())
    low, high = (loss_and_gradient(predictions, targets, norms, eos_coefficient=eos)[1] for eos in (0.1, 1.0))
    unmatched = ~np.asarray(low.boxes).any(axis=-1)
    assert 0 < unmatched.sum() < unmatched.size
    np.testing.assert_allclose(high.logits[unmatched], 10 * low.logits[unmatched], rtol=1e-4)
    np.testing.assert_allclose(high.logits[~unmatched], low.logits[~unmatched], rtol=1e-4)


def test_normalizers_count_boxes_and_class_weights():
    norms = normalizers(jnp.asarray([2, 0, 9]), 6, LossConfig(eos_coefficient=0.1))
    assert float(norms.boxes) == 11
    assert float(norms.class_weight) == pytest.approx(8 + 0.1 * (18 - 8))
    assert float(normalizers(jnp.asarray([0, 0]), 6, LossConfig()).boxes) == 1


def test_losses_of_parts_with_the_normalizers_of_the_whole_add_up(rng):
    predictions, targets = random_batch(rng, [2, 0, 3, 1, 0, 9])
    norms = normalizers(targets.count, QUERIES, LossConfig())

    def part(images):
        predicted = jax.tree.map(lambda x: x[:, images], predictions)
        (loss, _), _ = loss_and_gradient(predicted, jax.tree.map(lambda x: x[images], targets), norms)
        return float(loss)

    (whole, _), _ = loss_and_gradient(predictions, targets)
    assert part(slice(0, 3)) + part(slice(3, 6)) == pytest.approx(float(whole), rel=1e-5)
