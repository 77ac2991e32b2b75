import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_jax.evaluation.coco import METRICS, CocoEvaluator, has_objects
from detr_jax.structures import Detections


def _random_truth(rng, images=12):
    annotations = []
    for image_id in range(1, images + 1):
        for _ in range(rng.integers(0, 6)):
            x, y, w, h = rng.uniform(0, 200, 2).tolist() + rng.uniform(2, 150, 2).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice([1, 18, 90])),
                    "bbox": [x, y, w, h],
                    "area": w * h * float(rng.uniform(0.3, 1)),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    return {
        "images": [{"id": i, "height": 400, "width": 400} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class{i}"} for i in (1, 18, 90)],
    }


def _random_detections(rng, truth, queries=30):
    """Boxes near the true ones and boxes at random, [images, queries, ...]."""
    count = len(truth["images"])
    top_left = rng.uniform(0, 200, (count, queries, 2))
    boxes = np.concatenate([top_left, top_left + rng.uniform(2, 150, (count, queries, 2))], axis=2)
    labels = rng.choice([1, 18, 90], (count, queries))
    for image in range(count):
        own = [a for a in truth["annotations"] if a["image_id"] == image + 1]
        for query, annotation in enumerate(own):
            x, y, w, h = annotation["bbox"]
            boxes[image, query] = np.array([x, y, x + w, y + h]) + rng.normal(0, 3, 4)
            labels[image, query] = annotation["category_id"]
    return boxes.astype(np.float32), rng.random((count, queries)).astype(np.float32), labels


def _assert_equal(metrics, official):
    """Metrics equal the official numbers, and are None if those are -1, which means undefined."""
    assert [value is None for value in metrics] == [value == -1 for value in official]
    defined = [(value, other) for value, other in zip(metrics, official, strict=True) if value is not None]
    np.testing.assert_allclose(*np.array([*defined, (0.0, 0.0)]).T, atol=1e-6)


def _without_large(truth):
    truth["annotations"] = [a for a in truth["annotations"] if a["area"] < 96**2]


def _with_one_class_as_crowds(truth):
    for annotation in truth["annotations"]:
        annotation["iscrowd"] |= annotation["category_id"] == 18


def _with_crowds_only(truth):
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 1


def _without_objects(truth):
    truth["annotations"] = []


@pytest.mark.parametrize(
    "edit", [lambda truth: None, _without_large, _with_one_class_as_crowds, _with_crowds_only, _without_objects]
)
def test_metrics_equal_pycocotools_and_are_none_without_objects_of_their_kind(rng, edit):
    truth = _random_truth(rng)
    edit(truth)
    boxes, scores, labels = _random_detections(rng, truth)
    evaluator = CocoEvaluator(truth)
    ids = np.arange(1, len(truth["images"]) + 1)
    evaluator.add(ids[:5].tolist(), Detections(boxes[:5], scores[:5], labels[:5]))
    evaluator.add(
        [*ids[5:].tolist(), -1], Detections(*(np.concatenate([x[5:], x[:1]]) for x in (boxes, scores, labels)))
    )
    metrics = evaluator.compute()

    with contextlib.redirect_stdout(io.StringIO()):
        reference_truth = COCO()
        reference_truth.dataset = truth
        reference_truth.createIndex()
        found = [
            {
                "image_id": int(ids[i]),
                "category_id": int(labels[i, q]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(scores[i, q]),
            }
            for i in range(len(ids))
            for q, (x0, y0, x1, y1) in enumerate(boxes[i].tolist())
        ]
        reference = COCOeval(reference_truth, reference_truth.loadRes(found), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    if edit is _with_one_class_as_crowds:
        assert metrics["AP/class18"] is None
        assert metrics["AP"] is not None
    assert has_objects(truth) == (metrics["AP"] is not None)
    _assert_equal([metrics[name] for name in METRICS], reference.stats)
    for index, category in enumerate((1, 18, 90)):
        precision = reference.eval["precision"][:, :, index, 0, -1]
        expected = precision[precision > -1].mean() if (precision > -1).any() else -1
        _assert_equal([metrics[f"AP/class{category}"]], [expected])


def test_the_truth_itself_scores_one_and_nothing_scores_zero(rng):
    truth = _random_truth(rng)
    truth["annotations"] = [{**a, "iscrowd": 0} for a in truth["annotations"]]
    perfect, nothing = CocoEvaluator(truth), CocoEvaluator(truth)
    for annotation in truth["annotations"]:
        x, y, w, h = annotation["bbox"]
        box, score = np.array([[[x, y, x + w, y + h]]]), np.array([[0.9]])
        perfect.add([annotation["image_id"]], Detections(box, score, np.array([[annotation["category_id"]]])))
    assert perfect.compute()["AP"] == pytest.approx(1.0)
    assert nothing.compute()["AP"] == 0.0


def test_precision_equals_pycocotools(rng):
    truth = _random_truth(rng)
    boxes, scores, labels = _random_detections(rng, truth)
    evaluator = CocoEvaluator(truth)
    evaluator.add(range(1, len(truth["images"]) + 1), Detections(boxes, scores, labels))
    precision, names = evaluator.precision()
    with contextlib.redirect_stdout(io.StringIO()):
        official = COCO()
        official.dataset = truth
        official.createIndex()
        found = [
            {"image_id": i + 1, "category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
            for i in range(len(boxes))
            for (x0, y0, x1, y1), score, label in zip(
                boxes[i].astype(float).tolist(), scores[i].astype(float).tolist(), labels[i], strict=True
            )
        ]
        reference = COCOeval(official, official.loadRes(found), "bbox")
        reference.evaluate()
        reference.accumulate()
    np.testing.assert_allclose(precision, reference.eval["precision"][:, :, :, 0, -1], atol=1e-9)
    assert names == ["class1", "class18", "class90"]
