"""Damaged annotation files: each gives one clear error message or a correct data set."""

import copy
import json
import math

import numpy as np
import pytest

from detr_jax.data import CocoDataset, DataError
from detr_jax.evaluation.coco import CocoEvaluator

ODD = [
    *(None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e-30, 1e30, 1e308, 10**30, -(10**30), 2**31, 2**53, 2**63, 10**400),
    *(math.nan, math.inf, -math.inf, "", "x", "1", "\x00", "\ud800", "naïve ⚙", "a\nb", "../..", "x" * 5000),
    *(
        [],
        {},
        [[]],
        [[[[[[[]]]]]]],
        [None] * 4,
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [1, "2", 3, 4],
        {"id": 1},
        {"a": {"b": []}},
    ),
    *([0, 0, 0, 0], [-5, -5, 3, 3], [1, 1, math.nan, 2], [1e308, 1, 1e308, 1], [39.99999999, 1, 9, 9], [5, 5, 1e-9, 4]),
]


def _content(rng):
    images = [
        {
            "id": index * 3,
            "file_name": f"{index}.jpg",
            "height": int(rng.integers(5, 60)),
            "width": int(rng.integers(5, 60)),
        }
        for index in range(4)
    ]
    annotations = [
        {
            "id": index,
            "image_id": int(rng.integers(4)) * 3,
            "category_id": int(rng.integers(1, 4)),
            "bbox": np.round(rng.uniform(-10, 50, 4), 2).tolist(),
            "area": float(rng.uniform(0, 99)),
            "iscrowd": int(rng.random() < 0.2),
        }
        for index in range(8)
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": k, "name": f"c{k}"} for k in (1, 2, 3)]}


def _containers(node):
    """Every list and dictionary in a JSON value."""
    if isinstance(node, dict | list):
        yield node
        for child in node.values() if isinstance(node, dict) else node:
            yield from _containers(child)


def _change_structure(rng, content):
    """One random change of a value, a key, an item or the order somewhere in the tree."""
    nodes = [node for node in _containers(content) if len(node)]
    node = nodes[rng.integers(len(nodes))]
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key = keys[rng.integers(len(keys))]
    match rng.integers(5):
        case 0:
            del node[key]
        case 1:
            node[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
        case 2 if isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        case 3:
            node[key] = {"id": node[key]} if rng.random() < 0.5 else [node[key]]
        case _ if isinstance(node, dict):
            node[str(ODD[rng.integers(20, 29)])] = node.pop(key)
        case _:
            rng.shuffle(node)


def _damaged(rng) -> bytes:
    content = _content(rng)
    if rng.random() < 0.6:
        for _ in range(rng.integers(1, 4)):
            _change_structure(rng, content)
    data = bytearray(json.dumps(content, indent=int(rng.integers(3)) or None).encode())
    match rng.integers(8):
        case 0:
            del data[rng.integers(len(data)) :]
        case 1 | 2:
            for position in rng.integers(len(data), size=rng.integers(1, 4)):
                data[position] = rng.integers(256)
        case 3:
            digits = [i for i, byte in enumerate(data) if 48 <= byte < 58]
            data[rng.choice(digits) if digits else 0] = rng.integers(48, 58)
        case 4:
            start, end = sorted(rng.integers(len(data), size=2))
            data[start:end] = data[start:end] * 2
        case _:
            pass
    return bytes(data)


def _as_numbers(content):
    """The content in which ids, sizes and boxes that are written as texts or decimals are numbers."""
    for item in [*content["images"], *content["annotations"], *content["categories"]]:
        for key in ("id", "image_id", "category_id", "height", "width"):
            if isinstance(item.get(key), str | float):
                item[key] = int(float(item[key]))
        if "bbox" in item:
            item["bbox"] = [float(value) for value in item["bbox"]]
    return content


def _recounted(content):
    """Labels and clipped boxes of each image by definition, in float64."""
    found = {image["id"]: [] for image in content["images"]}
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for one in content["annotations"]:
        x, y, w, h = one["bbox"]
        width, height = sizes[one["image_id"]]
        box = np.array([max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)], np.float64)
        if not one.get("iscrowd") and w > 0 and h > 0 and (box[2:].astype("f4") > box[:2].astype("f4")).all():
            found[one["image_id"]].append((one["category_id"], box))
    return found


def _check_right(source, content):
    expected = _recounted(content)
    assert source.image_ids.tolist() == list(expected)
    listed = {category["id"] for category in content["categories"]}
    assert source.categories.keys() == listed
    for index, (height, width) in enumerate(source.sizes.tolist()):
        objects = source.objects(index)
        boxes, labels = objects.boxes, objects.labels
        assert np.isfinite(boxes).all()
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= [width, height]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        wanted = expected[source.image_ids[index]]
        assert labels.tolist() == [label for label, _ in wanted]
        assert listed.issuperset(labels.tolist())
        np.testing.assert_allclose(boxes, np.array([box for _, box in wanted]).reshape(-1, 4), rtol=1e-6)
    assert len(source.ground_truth()["annotations"]) == len(content["annotations"])


def _opened(path, **options) -> tuple[CocoDataset | None, str]:
    """The data set and its error message, one of which is empty. Other exceptions fail the test."""
    try:
        return CocoDataset(path.parent, path, **options), ""
    except DataError as error:
        return None, str(error)


def test_a_thousand_damaged_files_each_give_an_error_message_or_a_correct_data_set(tmp_path, rng):
    path = tmp_path / "instances.json"
    refused, read = 0, 0
    for _ in range(1000):
        data = _damaged(rng)
        path.write_bytes(data)
        source, sentence = _opened(path)
        if source is None:
            refused += 1
            assert "instances.json" in sentence, data
            assert sentence.endswith("."), data
            assert "\n" not in sentence, data
            assert len(sentence) < 400, data
            sentence.encode()  # can be printed
        else:
            read += 1
            _check_right(source, _as_numbers(json.loads(data.decode(errors="replace"))))
            if read % 20 == 0:
                assert CocoEvaluator(source.ground_truth()).compute()["AP"] in (-1, 0)
        source, sentence = _opened(path, strict=False)
        refusals = ("cannot be read as JSON", "has no list", "is not text in UTF-8")
        assert source is not None or any(words in sentence for words in refusals), data
    assert refused > 300
    assert read > 100


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "9" * 5000, "[" * 100_000, '"' + "\\ud800" * 3 + '"'])
def test_values_that_are_valid_json_but_not_valid_pixels_are_refused(tmp_path, rng, value):
    content = _content(rng)
    content["annotations"][0]["area"] = "HERE"
    (tmp_path / "instances.json").write_text(json.dumps(content).replace('"HERE"', value))
    with pytest.raises(DataError, match=r"instances\.json"):
        CocoDataset(tmp_path, tmp_path / "instances.json")
