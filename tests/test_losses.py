"""The set loss against numbers worked out by hand and against plain numpy with scipy's matching."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from detr_jax.config import (
    L1,
    ClassError,
    Classification,
    CrossEntropy,
    FocalCost,
    GIoU,
    GIoUCost,
    L1Cost,
    LossConfig,
    LossTerm,
    SigmoidFocal,
    SoftmaxCost,
)
from detr_jax.losses import Matched, set_loss
from detr_jax.matching import UNMATCHED, match, matching_cost
from detr_jax.structures import Denoising, Outputs, Predictions, Targets
from detr_jax.testing import random_predictions, random_targets, reference_giou

CLASSES, QUERIES, LAYERS, MOST_BOXES = 4, 6, 3, 10
COUNTS = {"some boxes": [2, 0, 3], "no box at all": [0, 0, 0], "more boxes than queries": [9, 1, 6]}
any_counts = pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS.keys())


def random_batch(rng, count):
    """Predictions, and targets whose padding holds random values."""
    predictions = random_predictions(rng, layers=LAYERS, batch=len(count), queries=QUERIES, num_logits=CLASSES + 1)
    return predictions, random_targets(rng, count, num_classes=CLASSES, max_objects=MOST_BOXES)


WEIGHTS = ("ce", "bbox", "giou", "no_object", "cost_class", "cost_bbox", "cost_giou")


def softmax_loss(*, ce=1.0, bbox=5.0, giou=2.0, no_object=0.1, cost_class=1.0, cost_bbox=5.0, cost_giou=2.0):
    """DETR's loss with these weights."""
    config = LossConfig()
    config.terms |= {"ce": CrossEntropy(weight=ce, no_object=no_object), "bbox": L1(weight=bbox)}
    config.terms["giou"] = GIoU(weight=giou)
    config.costs = {
        "class": SoftmaxCost(weight=cost_class),
        "bbox": L1Cost(weight=cost_bbox),
        "giou": GIoUCost(weight=cost_giou),
    }
    return config


@functools.partial(jax.jit, static_argnames=("matcher", "auxiliary"))
def loss_and_gradient(predictions, targets, counts=None, *, matcher="scipy", auxiliary=True, **weights):
    """`set_loss` with its gradient, compiled once for all weights: (loss, terms), gradient."""

    def loss(predictions):
        config = softmax_loss(**weights)
        config.matcher, config.auxiliary = matcher, auxiliary
        return set_loss(predictions, targets, config, batch_counts=counts)

    return jax.value_and_grad(loss, has_aux=True)(predictions)


def corners(box):
    cx, cy, w, h = map(float, box)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def reference_layer(logits, boxes, targets, weights):
    """Terms of one layer, query by query in numpy: logits [B, Q, C + 1], boxes [B, Q, 4]."""
    nll_sum = weight_sum = l1_sum = giou_sum = cardinality = right = right_objects = matched = 0.0
    for image in range(len(logits)):
        exponentials = np.exp(logits[image])
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        n = targets.count[image]
        wanted, labels = targets.boxes[image, :n], targets.labels[image, :n]
        l1 = np.array([[np.abs(box - want).sum() for want in wanted] for box in boxes[image]])
        giou = np.array([[reference_giou(corners(b), corners(w)) for w in wanted] for b in boxes[image]])
        l1, giou = l1.reshape(len(l1), n), giou.reshape(len(l1), n)
        cost = weights["cost_bbox"] * l1 - weights["cost_giou"] * giou
        cost -= weights["cost_class"] * probabilities[:, labels]
        pairs = list(zip(*linear_sum_assignment(cost), strict=True))
        label_of = {query: labels[target] for query, target in pairs}
        for query in range(len(probabilities)):
            weight = 1.0 if query in label_of else weights["no_object"]
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
    weights = dict(zip(WEIGHTS, rng.uniform(0.2, 3, len(WEIGHTS)).tolist(), strict=True))
    predictions, targets = random_batch(rng, count)
    (loss, terms), _ = loss_and_gradient(predictions, targets, matcher=matcher, auxiliary=auxiliary, **weights)

    logits, boxes = (np.asarray(x, np.float64) for x in (predictions.logits, predictions.boxes))
    layers = [
        reference_layer(*layer, jax.tree.map(np.asarray, targets), weights) for layer in zip(logits, boxes, strict=True)
    ]
    *earlier, expected = layers
    if auxiliary:
        for i, layer in enumerate(earlier):
            expected |= {f"{name}_{i}": value for name, value in layer.items() if name.startswith("loss")}
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    scored = layers if auxiliary else layers[-1:]
    total = sum(weights[name] * one[f"loss_{name}"] for name in ("ce", "bbox", "giou") for one in scored)
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
    (loss, terms), _ = loss_and_gradient(predictions, targets, no_object=0.0)
    assert float(loss) == 0.0
    assert all(np.isfinite(float(term)) for term in terms.values())


def test_the_weight_of_no_object_scales_the_gradient_of_unmatched_queries(rng):
    predictions, targets = random_batch(rng, [2, 1, 0])
    low, high = (loss_and_gradient(predictions, targets, no_object=weight)[1] for weight in (0.1, 1.0))
    divisors = [3 + weight * (3 * QUERIES - 3) for weight in (0.1, 1.0)]
    unmatched = ~np.asarray(low.boxes).any(axis=-1)
    assert 0 < unmatched.sum() < unmatched.size
    scale = divisors[0] / divisors[1]
    np.testing.assert_allclose(high.logits[unmatched], 10 * scale * low.logits[unmatched], rtol=1e-4)
    np.testing.assert_allclose(high.logits[~unmatched], scale * low.logits[~unmatched], rtol=1e-4)


def test_losses_of_micro_batches_add_up_to_the_loss_of_the_whole_batch(rng):
    predictions, targets = random_batch(rng, [2, 0, 3, 1, 0, 9])

    def micro_batch(images):
        predicted = jax.tree.map(lambda x: x[:, images], predictions)
        (loss, terms), _ = loss_and_gradient(predicted, jax.tree.map(lambda x: x[images], targets), targets.count)
        return {"loss": loss, **terms}

    (loss, terms), _ = loss_and_gradient(predictions, targets)
    first, second = micro_batch(slice(0, 3)), micro_batch(slice(3, 6))
    for name, value in {"loss": loss, **terms}.items():
        assert float(first[name] + second[name]) == pytest.approx(float(value), rel=1e-5), name


def focal_by_definition(logits, is_target, alpha, gamma):
    """Focal loss of each element, from its definition in numpy float64."""
    probability = 1 / (1 + np.exp(-logits))
    as_target = -alpha * (1 - probability) ** gamma * np.log(probability)
    as_other = -(1 - alpha) * probability**gamma * np.log(1 - probability)
    return np.where(is_target, as_target, as_other)


@any_counts
def test_the_sigmoid_loss_equals_plain_numpy_with_scipy(rng, count):
    predictions, targets = random_batch(rng, count)
    predictions = Predictions(3 * predictions.logits[..., :CLASSES], predictions.boxes)
    alpha, gamma = rng.uniform(0.1, 0.9), rng.uniform(1, 3)
    config = LossConfig(
        terms={"ce": SigmoidFocal(weight=1.5, alpha=alpha, gamma=gamma)},
        costs={"class": FocalCost(weight=2.5, alpha=alpha, gamma=gamma), "bbox": L1Cost(weight=0.7)},
    )
    assert config.classification == Classification.SIGMOID
    loss, terms = jax.jit(lambda *arrays: set_loss(*arrays, config))(predictions, targets)

    logits, boxes, wanted, labels = (
        np.asarray(x, np.float64) for x in (predictions.logits, predictions.boxes, targets.boxes, targets.labels)
    )
    expected = np.zeros(LAYERS)
    for layer, image in np.ndindex(LAYERS, len(count)):
        target_labels = labels[image, : count[image]].astype(int)
        own = logits[layer, image][:, target_labels]
        cost = 2.5 * focal_by_definition(own, True, alpha, gamma) - 2.5 * focal_by_definition(own, False, alpha, gamma)
        cost += 0.7 * np.abs(boxes[layer, image][:, None] - wanted[image, : count[image]][None]).sum(axis=-1)
        is_target = np.zeros((QUERIES, CLASSES), bool)
        for query, target in zip(*linear_sum_assignment(cost), strict=True):
            is_target[query, target_labels[target]] = True
        expected[layer] += focal_by_definition(logits[layer, image], is_target, alpha, gamma).sum()
    expected /= max(sum(count), 1)
    assert float(loss) == pytest.approx(1.5 * expected.sum(), rel=1e-4)
    assert [float(terms[name]) for name in ("loss_ce_0", "loss_ce_1", "loss_ce")] == pytest.approx(expected, rel=1e-4)


def test_proposals_and_denoising_queries_add_their_own_terms(rng):
    """Denoising queries have known targets: with those that the matching finds, their terms equal the matched ones."""
    predictions, targets = random_batch(rng, [2, 0, 3])
    proposals = jax.tree.map(lambda x: x[:1], random_batch(rng, [2, 0, 3])[0])
    config = LossConfig()
    compiled = jax.jit(lambda *arrays: set_loss(*arrays, config)[1])
    plain, of_proposals = compiled(predictions, targets), compiled(proposals, targets)
    last = jax.tree.map(lambda x: x[-1:], predictions)
    cost = matching_cost(last, targets, config.costs)
    query = match(cost, targets.count)[0]
    two_groups = jax.tree.map(lambda x: jnp.concatenate([x, x], axis=2), last)
    matched_query = jnp.concatenate([query, jnp.where(query == UNMATCHED, UNMATCHED, query + QUERIES)], axis=1)
    target = jnp.broadcast_to(jnp.tile(jnp.arange(query.shape[1]), 2)[None], matched_query.shape)

    outputs = Outputs(predictions, proposals, Denoising(two_groups, matched_query, target, jnp.array(2)))
    loss, terms = jax.jit(lambda *arrays: set_loss(*arrays, config))(outputs, targets)
    for name in ("ce", "bbox", "giou"):
        assert float(terms[f"loss_{name}"]) == pytest.approx(float(plain[f"loss_{name}"]), rel=1e-6)
        assert float(terms[f"loss_{name}_enc"]) == pytest.approx(float(of_proposals[f"loss_{name}"]), rel=1e-5)
        assert float(terms[f"loss_{name}_dn"]) == pytest.approx(float(plain[f"loss_{name}"]), rel=1e-5)
    total = sum(
        term.weight * float(value)
        for name, term in config.terms.items()
        for key, value in terms.items()
        if key.startswith(f"loss_{name}")
    )
    assert float(loss) == pytest.approx(total, rel=1e-5)


@dataclasses.dataclass(kw_only=True)
class WidthError(LossTerm):
    """A term of one's own: the difference of the widths of matched boxes."""

    def compute(self, matched: Matched) -> jax.Array:
        difference = jnp.abs(matched.matched_boxes - matched.targets.boxes[None])[..., 2]
        return jnp.where(matched.is_matched, difference, 0.0).sum(axis=(1, 2)) / matched.num_boxes


def test_a_term_of_ones_own_is_logged_and_added_with_its_weight(rng):
    predictions, targets = random_batch(rng, [2, 0, 3])
    config = LossConfig()
    plain, _ = set_loss(predictions, targets, config)
    config.terms["width"] = WidthError(weight=3.0)
    loss, terms = set_loss(predictions, targets, config)
    values = [float(terms[name]) for name in ("loss_width", "loss_width_0", "loss_width_1")]
    assert min(values) > 0
    assert float(loss) == pytest.approx(float(plain) + 3 * sum(values), rel=1e-5)


def test_parts_that_contradict_one_another_are_named():
    config = LossConfig(terms={"ce": CrossEntropy(), "focal": SigmoidFocal(), "empty": L1(weight=0.0)}, costs={})
    sentences = list(config.faults("loss."))
    assert any("loss.terms.focal (SigmoidFocal)" in sentence for sentence in sentences)
    assert any("loss.costs holds nothing" in sentence for sentence in sentences)
    (sentence,) = ClassError(weight=1.0).faults("loss.terms.class_error.")
    assert sentence.startswith("loss.terms.class_error.weight=1.0 must be 0")
