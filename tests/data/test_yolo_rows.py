"""The form of YOLO rows follows from all rows of a data set together."""

import numpy as np
import pytest
from PIL import Image

from detr_jax.data import DataError, YoloDataset
from detr_jax.data.yolo_rows import boxes_of, conclude, parse_labels


def _box(rng):
    w, h = rng.uniform(0.02, 0.4, 2)
    return [rng.uniform(w / 2, 1 - w / 2), rng.uniform(h / 2, 1 - h / 2), w, h]


def _pose(rng, points, numbers):
    cx, cy, w, h = box = _box(rng)
    for _ in range(points):
        box = [*box, cx + rng.uniform(-0.5, 0.5) * w, cy + rng.uniform(-0.5, 0.5) * h]
        box += [int(rng.integers(3))] * (numbers == 3)
    return box


def _polygon(rng, corners):
    cx, cy, w, h = _box(rng)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    return np.stack([cx + w / 2 * np.cos(angles), cy + h / 2 * np.sin(angles)], 1).ravel().tolist()


def _rotated(rng):
    cx, cy, w, h = _box(rng)
    a, b = np.array([w, h]) * rng.uniform(-0.3, 0.3, (2, 2))
    offsets = np.array([a + b, a - b, -a - b, b - a])
    return (np.array([[cx, cy]]) + offsets).ravel().tolist()


def _track(rng):
    return int(rng.integers(1, 50))


BOXES = {
    "box": _box,
    "box and confidence": lambda rng: [*_box(rng), rng.random()],
    "box and track": lambda rng: [*_box(rng), _track(rng)],
    "box, and track of some": lambda rng: [*_box(rng), *([_track(rng)] if rng.random() < 0.3 else [])],
    "box, confidence and track": lambda rng: [*_box(rng), rng.random(), _track(rng)],
    "17 points with visibility": lambda rng: _pose(rng, 17, 3),
    "4 points with visibility": lambda rng: _pose(rng, 4, 3),
    "1 point": lambda rng: _pose(rng, 1, 2),
    "4 points": lambda rng: _pose(rng, 4, 2),
    "9 points, and boxes without": lambda rng: _pose(rng, 9, 2) if rng.random() < 0.7 else _box(rng),
}
POLYGONS = {
    "triangles": lambda rng: _polygon(rng, 3),
    "four corners": lambda rng: _polygon(rng, 4),
    "rotated boxes": _rotated,
    "rotated boxes, and boxes": lambda rng: _rotated(rng) if rng.random() < 0.5 else _box(rng),
    "polygons": lambda rng: _polygon(rng, int(rng.integers(3, 30))),
    "polygons and boxes": lambda rng: _polygon(rng, int(rng.integers(3, 30))) if rng.random() < 0.5 else _box(rng),
    "polygons and confidence": lambda rng: [*_polygon(rng, int(rng.integers(3, 30))), rng.random()],
    "polygons, and track of some": lambda rng: [
        *_polygon(rng, int(rng.integers(3, 30))),
        *([_track(rng)] if rng.random() < 0.3 else []),
    ],
}
UNCLEAR = {
    "box and angle": lambda rng: [*_box(rng), rng.uniform(0, 180)],
    "polygons, confidence and track": lambda rng: [*_polygon(rng, int(rng.integers(3, 30))), rng.random(), 1],
}


def _conclude(rows, key_points=None, task="", requested="auto"):
    labels = parse_labels("".join(f"0 {' '.join(f'{value:.17g}' for value in row)}\n" for row in rows), {})
    assert not labels.faults
    return labels.rows, conclude(labels.rows, key_points=key_points, task=task, requested=requested)


def _bounds(row):
    """The cxcywh bounds of a box or polygon, by definition."""
    if len(row) < 6:
        return row[:4]
    corners = np.array(row[: len(row) // 2 * 2]).reshape(-1, 2)
    return [*(corners.max(0) + corners.min(0)) / 2, *np.ptp(corners, axis=0)]


@pytest.mark.parametrize("name", BOXES)
def test_boxes_with_additional_numbers_are_boxes(rng, name):
    rows = [BOXES[name](rng) for _ in range(200)]
    parsed, form = _conclude(rows)
    assert form.kind == "box", form.reason
    assert all(form.fits(len(row)) for row in rows)
    np.testing.assert_allclose(boxes_of(parsed, form), [row[:4] for row in rows])


@pytest.mark.parametrize("name", POLYGONS)
def test_polygons_give_their_bounding_boxes(rng, name):
    rows = [POLYGONS[name](rng) for _ in range(200)]
    parsed, form = _conclude(rows)
    assert form.kind == "polygon", form.reason
    assert all(form.fits(len(row)) for row in rows)
    np.testing.assert_allclose(boxes_of(parsed, form), [_bounds(row) for row in rows])


@pytest.mark.parametrize("name", UNCLEAR)
def test_rows_that_fit_several_forms_are_ambiguous_unless_one_is_requested(rng, name):
    rows = [UNCLEAR[name](rng) for _ in range(50)]
    assert _conclude(rows)[1].kind == ""
    parsed, form = _conclude(rows, requested="box")
    np.testing.assert_allclose(boxes_of(parsed, form), [row[:4] for row in rows])


def test_one_row_of_key_points_is_ambiguous_and_one_polygon_is_recognised():
    assert _conclude([[0.5, 0.5, 0.3, 0.3, 0.4, 0.4, 0.6, 0.6]])[1].kind == ""
    assert _conclude([[0.1, 0.1, 0.9, 0.1, 0.9, 0.9, 0.5, 0.7]])[1].kind == "polygon"


def test_the_data_file_has_precedence_over_the_rows(rng):
    rows = [_pose(rng, 2, 2) for _ in range(2)]
    assert _conclude(rows)[1].kind == ""
    assert _conclude(rows, key_points=(2, 2))[1].kind == "box"
    assert not _conclude(rows, key_points=(3, 2))[1].fits(8)
    assert _conclude(rows, task="segment")[1].kind == "polygon"
    assert _conclude(rows, task="segment", requested="box")[1].kind == "box"
    assert _conclude(rows, key_points=(2, 2), requested="polygon")[1].kind == "polygon"


@pytest.mark.parametrize(
    ("line", "oddity"),
    [
        ("1 0.5 0.25 0.125 0.375", None),
        ("1.0 5e-1 .25 1.25E-1 +0.375", None),
        ("1\t0.5\t0.25\t0.125\t0.375", None),
        ("1,0.5,0.25,0.125,0.375", "rows separated by commas were read"),
        ("1, 0.5, 0.25, 0.125, 0.375", "rows separated by commas were read"),
        ("1;0.5;0.25;0.125;0.375", "rows separated by semicolons were read"),
        ("1 0,5 0,25 0,125 0,375", "rows with decimal commas were read"),
        ("1;0,5;0,25;0,125;0,375", "rows with decimal commas were read"),
        ("stop sign 0.5 0.25 0.125 0.375", "rows with the name of their class were read"),
        ("1 0.5 0.25 -0.125 0.375", "boxes with negative width or height were read with positive sides"),
    ],
)
def test_unusual_spellings_of_rows_are_read_and_counted(line, oddity):
    labels = parse_labels(line, {"stop sign": 1})
    assert not labels.faults
    assert list(labels.oddities) == ([oddity] if oddity else [])
    np.testing.assert_array_equal(labels.rows[0, 1:7], [1, 4, 0.5, 0.25, 0.125, 0.375])


@pytest.mark.parametrize(
    "line", ["cat 0.5 0.5 0.1 0.1", "1 0.5 0.5 inf 0.1", "x", "1.5 0.5 0.5 0.1 0.1", "{}", ";", "-"]
)
def test_a_line_that_is_not_a_row_is_an_error(line):
    labels = parse_labels(f"\n{line}\n", {"dog": 0})
    assert labels.faults == [(2, line)]


@pytest.fixture
def root(tmp_path):
    """Two splits with one image each, of 30 x 40 pixels (height x width)."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / split / "a.png")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    return tmp_path


def _write(root, split, rows):
    text = "".join(f"0 {' '.join(f'{value:.17g}' for value in row)}\n" for row in rows)
    (root / "labels" / split / "a.txt").write_text(text)


def test_a_split_with_ambiguous_rows_takes_the_form_of_the_other_splits(root, rng):
    rows = [[0.5, 0.5, 0.3, 0.3, 0.4, 0.4, 0.6, 0.6]]
    _write(root, "val", rows)
    with pytest.raises(
        DataError, match=r"may be boxes or polygons \(1 rows have 8 numbers.*set data\.sources\.yolo\.rows"
    ):
        YoloDataset(root / "data.yaml", "val")
    _write(root, "train", [_pose(rng, 2, 2) for _ in range(60)])
    source = YoloDataset(root / "data.yaml", "val")
    np.testing.assert_allclose(source.objects(0).boxes, [[14, 10.5, 26, 19.5]], rtol=1e-6)
    assert "2 key points of 2 numbers" in source.understood
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + "kpt_shape: [3, 2]\n")
    with pytest.raises(DataError, match=r"a\.txt row 1 has 8 numbers.*3 key points.*kpt_shape: \[3, 2\]"):
        YoloDataset(root / "data.yaml", "val")
    np.testing.assert_allclose(
        YoloDataset(root / "data.yaml", "val", rows="polygon").objects(0).boxes, [[12, 9, 24, 18]], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [([20, 15, 10, 12], "as if they were percent or pixels"), ([120, 15, 10, 12], "rows have numbers beyond 1")],
)
def test_the_error_says_if_rows_are_in_pixels_or_percent(root, row, words):
    _write(root, "train", [row])
    with pytest.raises(DataError, match=words):
        YoloDataset(root / "data.yaml", "train")
