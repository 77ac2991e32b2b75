"""Panoptic quality against hotcoco, an implementation of its own, on drawn and damaged panoptic data."""

import json
from pathlib import Path

import numpy as np
import pytest
from hotcoco.panoptic import pq_compute
from PIL import Image

from detr_jax.config import BACKGROUND_KINDS, ShapesConfig
from detr_jax.data import CocoPanopticDataset
from detr_jax.data.panoptic_png import write_png
from detr_jax.data.shapes import write_coco
from detr_jax.evaluation.panoptic_quality import PanopticStatistics


def damage_truth(annotations: Path, rng: np.random.Generator) -> None:
    """Makes some segments crowds, and takes others away, so that their pixels are void."""
    form = json.loads(annotations.read_text())
    for entry in form["annotations"]:
        file = annotations.with_suffix("") / entry["file_name"]
        pixels = np.array(Image.open(file))
        kept = []
        for segment in entry["segments_info"]:
            segment["iscrowd"] = int(rng.random() < 0.2)
            if rng.random() < 0.15 and len(entry["segments_info"]) > 1:
                i = segment["id"]
                pixels[(pixels == [i & 255, i >> 8 & 255, i >> 16]).all(axis=-1)] = 0
            else:
                kept.append(segment)
        entry["segments_info"] = kept
        Image.fromarray(pixels).save(file)
    annotations.write_text(json.dumps(form))


def compare(images: Path, annotations: Path, out: Path, rng: np.random.Generator) -> tuple[dict, dict]:
    """Ours and hotcoco's results for a prediction that is a damaged copy of the ground truth."""
    source = CocoPanopticDataset(images, annotations, annotations.with_suffix(""))
    statistics = PanopticStatistics()
    out.mkdir()
    labels = np.array(list(source.categories))
    entries = []
    form = json.loads(annotations.read_text())
    name_of = {entry["image_id"]: entry["file_name"] for entry in form["annotations"]}
    for index, image_id in enumerate(source.image_ids.tolist()):
        truth = source.panoptic(index)
        ids = np.zeros_like(truth.ids)
        for k, segment in enumerate(truth.segment_ids.tolist()):
            ids[truth.ids == segment] = k + 1
        shift = tuple(rng.integers(0, max(2, min(ids.shape) // 30), 2))
        ids = np.roll(ids, shift, axis=(0, 1))
        ids[: rng.integers(0, 9)] = 0
        there = np.unique(ids[ids > 0])
        position = np.zeros(len(truth.labels) + 1, np.int32)
        position[there] = np.arange(1, len(there) + 1)
        ids = position[ids]
        found = np.where(rng.random(len(there)) < 0.1, rng.choice(labels, len(there)), truth.labels[there - 1])
        statistics.add(truth, ids, found)
        write_png(out / name_of[image_id], ids)
        segments = [{"id": k + 1, "category_id": int(label), "area": 1} for k, label in enumerate(found)]
        entries.append({"image_id": image_id, "file_name": name_of[image_id], "segments_info": segments})
    (out.parent / "found.json").write_text(json.dumps({**form, "annotations": entries}))
    theirs = pq_compute(
        str(annotations),
        str(out.parent / "found.json"),
        gt_folder=str(annotations.with_suffix("")),
        pred_folder=str(out),
    )
    stuff = source.stuff_labels
    groups = {
        "All": list(source.categories),
        "Things": [label for label in source.categories if label not in stuff],
        "Stuff": [label for label in source.categories if label in stuff],
    }
    return {name: statistics.mean(members) for name, members in groups.items()}, theirs


def assert_equal(ours: dict, theirs: dict) -> None:
    for name, qualities in ours.items():
        expected = tuple(theirs[name][key] for key in ("pq", "sq", "rq"))
        assert qualities == pytest.approx(expected, abs=1e-9), name
        assert 0.05 < qualities[0] < 1


def test_panoptic_quality_is_hotcoco_s(tmp_path, rng):
    shapes = ShapesConfig(
        train_images=40, val_images=1, min_size=60, max_size=120, max_objects=6, backgrounds=BACKGROUND_KINDS
    )
    write_coco(shapes, tmp_path / "shapes")
    annotations = tmp_path / "shapes" / "annotations" / "panoptic_train2017.json"
    damage_truth(annotations, rng)
    assert_equal(*compare(tmp_path / "shapes" / "train2017", annotations, tmp_path / "found", rng))
