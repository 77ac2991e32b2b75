"""AP of masks against pycocotools, and the evaluators in a validation."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_jax.config import CocoMask, ConfigError, PanopticQuality, ShapesConfig
from detr_jax.data import ShapesDataset
from detr_jax.data.masks import as_text
from detr_jax.evaluation.mask_evaluators import CocoMaskEvaluator, PanopticEvaluator
from detr_jax.inference.masks import ImageMasks
from detr_jax.structures import Detections

SHAPES = ShapesConfig(val_images=12, min_size=40, max_size=90, max_objects=5, backgrounds=("plain", "stripes"))


def damaged(source, rng, number=20):
    """Masks near those of the data set, as detections of a model with ``number`` queries."""
    for index in range(len(source)):
        height, width = source.sizes[index].tolist()
        objects = source.objects(index)
        bitmaps = objects.masks.bitmaps()
        logits = rng.normal(size=(number, height, width)).astype(np.float32) - 3
        labels = rng.integers(0, len(source.categories), number)
        scores = rng.uniform(0, 0.6, number)
        for k, (bitmap, label) in enumerate(zip(bitmaps, objects.labels, strict=True)):
            logits[k] = np.roll(np.where(bitmap, 3.0, -3.0), rng.integers(0, 4, 2), axis=(0, 1))
            labels[k], scores[k] = label if rng.random() < 0.9 else 0, rng.uniform(0.5, 1)
        detections = Detections(np.zeros((1, number, 4), np.float32), scores[None].astype(np.float32), labels[None])
        masks = ImageMasks.of(logits, (height, width), (height, width), 1)
        yield index, detections, np.arange(number)[None], masks


def test_ap_of_masks_is_that_of_pycocotools(rng):
    source = ShapesDataset(SHAPES, "val", masks=True)
    evaluator = CocoMask().build(source)
    assert isinstance(evaluator, CocoMaskEvaluator)
    results = []
    for index, detections, queries, masks in damaged(source, rng):
        image_id = source.image_ids[index]
        evaluator.add_masks([image_id], detections, queries, [masks])
        for score, label, bitmap in zip(detections.scores[0], detections.labels[0], masks.bitmaps(), strict=True):
            runs = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
            results.append(
                {"image_id": image_id, "category_id": int(label), "score": float(score), "segmentation": runs}
            )
    found = evaluator.compute()
    truth = COCO()
    truth.dataset = source.ground_truth()
    truth.createIndex()
    expected = COCOeval(truth, truth.loadRes(results), "segm")
    expected.evaluate()
    expected.accumulate()
    expected.summarize()
    for name, value in zip(CocoMask.numbers, expected.stats, strict=True):
        assert (found[name] if found[name] is not None else -1) == pytest.approx(value, abs=1e-12)
    assert 0.1 < found["AP"] < 0.99
    assert "AP/plain" not in found, "COCO evaluates masks of things"


def test_panoptic_quality_of_the_truth_itself_is_1(rng):
    source = ShapesDataset(SHAPES, "val", masks=True)
    evaluator = PanopticEvaluator(source, 0.85)
    for index in range(len(source)):
        height, width = source.sizes[index].tolist()
        objects = source.objects(index)
        logits = np.where(objects.masks.bitmaps(), 5.0, -5.0).astype(np.float32)
        scores, labels = np.full((1, len(logits)), 0.99, np.float32), objects.labels[None]
        masks = ImageMasks.of(logits, (height, width), (height, width), 1)
        detections = Detections(np.zeros((1, len(logits), 4), np.float32), scores, labels)
        evaluator.add_masks([source.image_ids[index]], detections, np.arange(len(logits))[None], [masks])
    metrics = evaluator.compute()
    assert {metrics[name] for name in PanopticQuality.numbers} == {1.0}
    assert {name for name in metrics if "/" in name} == {f"PQ/{name}" for name in source.categories.values()}


def test_panoptic_quality_needs_panoptic_annotations():
    class Plain:
        faults = ShapesDataset(SHAPES, "val").faults
        image_ids = ()

    with pytest.raises(ConfigError, match="shapes has none"):
        PanopticQuality().build(Plain())


def test_run_lengths_are_texts_that_pycocotools_reads(rng):
    bitmap = rng.random((37, 21)) < 0.4
    from detr_jax.data.masks import encoded
    from detr_jax.data.run_lengths import decoded

    runs = as_text(encoded(bitmap))
    assert isinstance(runs["counts"], str)
    np.testing.assert_array_equal(coco_mask.decode({**runs, "counts": runs["counts"].encode()}), bitmap)
    np.testing.assert_array_equal(decoded(runs), bitmap)
