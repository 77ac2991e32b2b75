"""The arrays of a data set against its annotations, item by item."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from detr_jax.data import CocoDataset
from detr_jax.data.annotation_checks import check_instances
from detr_jax.data.instances import PackedTexts
from detr_jax.data.source import Faults

SIZE = (300, 400)


@pytest.fixture
def content(rng):
    """An instances form with boxes of every kind, in random order."""
    ids = rng.permutation(1000)[:60].tolist()
    low = rng.integers(-40, [SIZE[1], SIZE[0]], (400, 2))
    boxes = np.concatenate([low, rng.integers(-3, 200, (400, 2))], axis=1).tolist()
    return {
        "images": [{"id": i, "file_name": f"{i} ü.jpg", "height": SIZE[0], "width": SIZE[1]} for i in ids],
        "annotations": [
            {
                "id": k + 1,
                "image_id": int(rng.choice(ids)),
                "category_id": int(rng.choice([3, 7, 8])),
                "bbox": box,
                "area": float(rng.random() * 50),
                "iscrowd": int(rng.random() < 0.1),
            }
            for k, box in enumerate(boxes)
        ],
        "categories": [{"id": k, "name": f"c{k}"} for k in (3, 7, 8)],
    }


def _clipped(one):
    x, y, w, h = one["bbox"]
    box = [max(x, 0), max(y, 0), min(x + w, SIZE[1]), min(y + h, SIZE[0])]
    return box if w > 0 and h > 0 and box[2] > box[0] and box[3] > box[1] else None


def _objects(content, image_id, label_of=lambda label: label):
    items = [one for one in content["annotations"] if one["image_id"] == image_id and not one["iscrowd"]]
    return [(label_of(one["category_id"]), _clipped(one)) for one in items if _clipped(one)]


def _check(instances, content, ids, label_of=lambda label: label):
    assert instances.image_ids.tolist() == ids
    assert list(instances.file_names) == [f"{i} ü.jpg" for i in ids]
    for index, image_id in enumerate(ids):
        objects = instances.objects(index)
        boxes, labels = objects.boxes, objects.labels
        wanted = _objects(content, image_id, label_of)
        assert labels.tolist() == [label for label, _ in wanted]
        assert boxes.tolist() == [box for _, box in wanted]


def test_each_image_has_its_own_objects(content):
    instances = check_instances(content, Faults("x"))
    _check(instances, content, [image["id"] for image in content["images"]])


def test_a_selection_and_new_labels_keep_the_rest(content, rng):
    ids = np.array([image["id"] for image in content["images"]])
    kept = rng.random(len(ids)) < 0.4
    new = {3: 1, 7: 0, 8: 2}
    instances = check_instances(content, Faults("x"), official=True).select(kept).relabelled(new)
    _check(instances, content, ids[kept].tolist(), new.get)
    assert instances.categories == {1: "c3", 0: "c7", 2: "c8"}
    assert instances.category_ids == {1: 3, 0: 7, 2: 8}
    truth = instances.ground_truth()
    wanted = [one for one in content["annotations"] if one["image_id"] in ids[kept]]
    assert [one["id"] for one in truth["annotations"]] == list(range(1, len(wanted) + 1))
    for found, one in zip(truth["annotations"], wanted, strict=True):
        assert found | {"id": one["id"], "category_id": one["category_id"]} == one
        assert found["category_id"] == new[one["category_id"]]


def test_the_official_ground_truth_has_all_boxes_and_the_other_only_trained_boxes(content):
    official = check_instances(content, Faults("x"), official=True).ground_truth()["annotations"]
    assert [one["bbox"] for one in official] == [one["bbox"] for one in content["annotations"]]
    own = check_instances(content, Faults("x")).ground_truth()["annotations"]
    wanted = [one for one in content["annotations"] if _clipped(one)]
    assert [one["iscrowd"] for one in own] == [one["iscrowd"] for one in wanted]
    for found, one in zip(own, wanted, strict=True):
        x0, y0, x1, y1 = _clipped(one)
        x, y, w, h = one["bbox"]
        cut = max(x0 - x, y0 - y, x + w - x1, y + h - y1) > 1
        assert found["bbox"] == ([x0, y0, x1 - x0, y1 - y0] if cut else one["bbox"])
        assert found["area"] == ((x1 - x0) * (y1 - y0) if cut else one["area"])


def test_packed_texts_are_unpacked_unchanged(rng):
    texts = ["".join(map(chr, rng.integers(32, 0x2000, rng.integers(0, 9)))) for _ in range(50)] + ["\udce9", ""]
    packed = PackedTexts(texts)
    assert list(packed) == texts
    assert packed[-1] == texts[-1]
    assert packed[3:9] == texts[3:9]
    assert len(PackedTexts([])) == 0


def test_another_process_reads_the_same_arrays_from_a_small_pickle(tmp_path, rng):
    number = 20_000
    rows = rng.integers(1, 99, (number, 4)).tolist()
    images = [{"id": k, "file_name": f"{k}.jpg", "height": 400, "width": 400} for k in range(number)]
    annotations = [
        {"id": k + 1, "image_id": k, "category_id": 1, "bbox": row, "area": 1, "iscrowd": 0}
        for k, row in enumerate(rows)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    source = CocoDataset.__new__(CocoDataset)
    super(CocoDataset, source).__init__(check_instances(content, Faults("x")), tmp_path)
    pickled = pickle.dumps(source)
    assert len(pickled) < 10_000
    program = (
        "import pickle, sys; s = pickle.loads(sys.stdin.buffer.read())\n"
        "print([s.objects(i).boxes.tolist() for i in (0, 777, 19999)], s.file_name(777), len(s), s.sizes[5].tolist())"
    )
    found = subprocess.run([sys.executable, "-c", program], input=pickled, capture_output=True, check=True)
    boxes = [source.objects(i).boxes.tolist() for i in (0, 777, 19999)]
    assert found.stdout.decode().strip() == f"{boxes} 777.jpg {number} [400, 400]"
    assert pickle.loads(pickled).image_ids.tolist() == list(range(number))
