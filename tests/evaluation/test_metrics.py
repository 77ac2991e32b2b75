"""Metrics by name: the numbers of a metric from outside of the package, and which of them is the best."""

import dataclasses
import json

import numpy as np
import pytest

from detr_jax.config import (
    CocoBox,
    Config,
    ConfigError,
    DataConfig,
    MetricConfig,
    ShapesConfig,
    check,
    from_json,
    to_json,
)
from detr_jax.data import open_source
from detr_jax.evaluation.coco import METRICS, CocoEvaluator
from detr_jax.evaluation.metrics import Evaluators
from detr_jax.structures import Detections
from detr_jax.testing import tiny_config


class CountEvaluator:
    """Compares the number of detections in each image with the number of its objects."""

    def __init__(self, source, threshold):
        self.truth = {image_id: len(source.objects(index).labels) for index, image_id in enumerate(source.image_ids)}
        self.threshold = threshold
        self.right = []

    def add(self, image_ids, detections):
        counts = (detections.scores >= self.threshold).sum(axis=1)
        self.right += [self.truth[i] == count for i, count in zip(image_ids, counts.tolist(), strict=True)]

    def compute(self):
        return {"right": float(np.mean(self.right))}


@dataclasses.dataclass(kw_only=True)
class CountMetric(MetricConfig):
    """The share of images in which the number of detections is right."""

    numbers = ("right",)
    threshold: float = 0.5

    def build(self, source):
        return CountEvaluator(source, self.threshold)


@pytest.fixture
def source():
    data = DataConfig(dataset="shapes", sources={"shapes": ShapesConfig(val_images=6)})
    return open_source(Config(data=data), "val")


def _random_detections(rng, images):
    corner = rng.uniform(0, 30, (images, 5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 30, (images, 5, 2))], axis=2).astype(np.float32)
    return Detections(boxes, rng.random((images, 5)).astype(np.float32), rng.integers(0, 3, (images, 5)))


def test_the_default_metrics_are_those_of_coco_under_their_own_names(rng, source):
    detections = _random_detections(rng, len(source))
    evaluators, alone = Evaluators(Config().evaluation.metrics, source), CocoEvaluator(source.ground_truth())
    for evaluator in (evaluators, alone):
        evaluator.add(source.image_ids, detections)
    assert evaluators.compute() == alone.compute()
    assert tuple(name for name in evaluators.compute() if "/" not in name) == METRICS


def test_a_metric_from_outside_is_computed_next_to_the_others(rng, source):
    detections = _random_detections(rng, len(source))
    metrics = {"bbox": CocoBox(), "count": CountMetric(threshold=0.7), "again": CocoBox()}
    evaluators = Evaluators(metrics, source)
    evaluators.add(source.image_ids[:2], Detections(*(x[:2] for x in vars(detections).values() if x is not None)))
    evaluators.add(source.image_ids[2:], Detections(*(x[2:] for x in vars(detections).values() if x is not None)))
    found = evaluators.compute()
    wanted = [len(source.objects(i).labels) == (detections.scores[i] >= 0.7).sum() for i in range(len(source))]
    assert found["count_right"] == np.mean(wanted)
    assert found["again_AP"] == found["AP"]
    assert found["again_AP/circle"] == found["AP/circle"]


def test_a_metric_that_does_not_compute_what_it_lists_is_named(rng, source):
    class Forgetful(CountMetric):
        numbers = ("right", "wrong")

    evaluators = Evaluators({"count": Forgetful()}, source)
    evaluators.add(source.image_ids, _random_detections(rng, len(source)))
    with pytest.raises(ConfigError, match=r"evaluation\.metrics\.count .*Forgetful\.numbers lists wrong"):
        evaluators.compute()


def test_a_class_without_build_is_refused_by_name(source):
    class Unfinished(MetricConfig):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished must define build"):
        Evaluators({"mine": Unfinished()}, source)


def test_the_best_must_be_a_number_of_a_metric():
    config = tiny_config()
    config.evaluation.metrics["count"] = CountMetric()
    config.evaluation.best = "count_right"
    check(config)
    assert from_json(to_json(config)) == config
    config.evaluation.best = "right"
    with pytest.raises(ConfigError, match=r"^evaluation\.best='right' .*AP, .*count_right: choose"):
        check(config)
    config.evaluation.metrics = {}
    with pytest.raises(ConfigError, match=r"evaluation\.best='right'.*none"):
        check(config)


def test_json_of_an_earlier_version_has_the_metrics_of_today():
    values = json.loads(to_json(Config()))
    del values["evaluation"]["metrics"], values["evaluation"]["best"]
    assert from_json(json.dumps(values)) == Config()
