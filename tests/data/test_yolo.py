import shutil

import numpy as np
import pytest
from PIL import Image

from detr_jax.config import Config, DataConfig
from detr_jax.data import DataError, YoloDataset, find_layout, open_source


@pytest.fixture
def root(tmp_path, rng):
    """Two training images of 30 x 40 pixels (height x width), the second without labels, and a validation image."""
    for split, names in (("train", ("b", "a")), ("val", ("c",))):
        for name in names:
            path = tmp_path / "images" / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
        (tmp_path / "labels" / split).mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.25 0.4\n\n0 0.25 0.5 0.5 1.0\n")
    _write(tmp_path)
    return tmp_path


def _write(root, **fields):
    lines = {"path": ".", "train": "images/train", "val": "images/val", "names": "[cat, dog]", **fields}
    (root / "data.yaml").write_text("".join(f"{name}: {value}\n" for name, value in lines.items() if value is not None))


def _label(root, text):
    (root / "labels" / "train" / "a.txt").write_text(text)
    return YoloDataset(root / "data.yaml", "train")


def test_rows_become_boxes_in_pixels_and_images_without_a_label_file_have_none(root):
    source = YoloDataset(root / "data.yaml", "train")
    assert source.categories == {0: "cat", 1: "dog"}
    assert [image["file_name"] for image in source.ground_truth()["images"]] == [
        str(root / "images" / "train" / name) for name in ("a.png", "b.png")
    ]
    sample = source[0]
    image = sample.image
    boxes, labels = sample.objects.boxes, sample.objects.labels
    assert image.shape == (30, 40, 3)
    np.testing.assert_allclose(boxes, [[15, 9, 25, 21], [0, 0, 20, 30]], atol=1e-5)
    assert labels.tolist() == [1, 0]
    assert len(source[1].objects.labels) == 0
    assert [one["area"] for one in source.ground_truth()["annotations"]] == pytest.approx([120, 600])


def test_polygons_become_their_bounding_boxes(root, rng):
    corners = rng.random((7, 2))
    triangle = [0.1, 0.2, 0.3, 0.2, 0.3, 0.5]
    source = _label(root, "".join(f"1 {' '.join(map(str, values))}\n" for values in (corners.ravel(), triangle)))
    expected = np.concatenate([corners.min(0), corners.max(0)]) * [40, 30, 40, 30]
    np.testing.assert_allclose(source.objects(0).boxes, [expected, [4, 6, 12, 15]], rtol=1e-5)


@pytest.mark.parametrize(
    "names",
    ["\n  0: cat\n  1: dog", "\n- cat\n- dog", "{0: cat, 1: dog}", "[cat, dog]\nnc: 2", "\n  '0': cat\n  '1': dog"],
)
def test_names_may_be_a_list_or_a_dictionary(root, names):
    _write(root, names=names)
    assert YoloDataset(root / "data.yaml", "val").categories == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    "fields",
    [
        {"path": None},
        {"path": "/nowhere/at/all"},
        {"path": "../somewhere"},
        {"train": "../images/train"},
        {"train": "[images/train]"},
        {"train": "train.txt"},
        {"train": "[train.txt, images/train]"},
    ],
)
def test_images_are_found_where_exports_put_them(root, fields):
    (root / "train.txt").write_text("./images/train/a.png\nimages/train/b.png\n")
    _write(root, **fields)
    source = YoloDataset(root / "data.yaml", "train")
    assert len(source) == 2
    assert len(source[0].objects.labels) == 2


def test_val_may_be_called_validation(root):
    _write(root, val=None, validation="images/val")
    assert len(YoloDataset(root / "data.yaml", "val")) == 1


@pytest.mark.parametrize(("orientation", "quarter_turns"), [(3, 2), (6, -1), (8, 1)])
@pytest.mark.parametrize("width", [40, 30])
def test_a_rotation_in_exif_is_applied_as_the_labels_expect(root, rng, orientation, quarter_turns, width):
    pixels = rng.integers(0, 256, (30, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(root / "images" / "train" / "a.png", exif=exif)
    source = YoloDataset(root / "data.yaml", "train")
    displayed = np.rot90(pixels, quarter_turns)
    np.testing.assert_array_equal(source[0].image, displayed)
    assert source.sizes[0].tolist() == list(displayed.shape[:2])
    np.testing.assert_allclose(
        source.objects(0).boxes[1], [0, 0, source.sizes[0, 1] / 2, source.sizes[0, 0]], atol=1e-5
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("2 0.5 0.5 0.1 0.1", "has class 2, and the data set has 0 cat, 1 dog"),
        ("-1 0.5 0.5 0.1 0.1", "has class -1"),
        ("bird 0.5 0.5 0.1 0.1", "'bird 0.5 0.5 0.1 0.1', which must be a class"),
        ("0.5 0.5 0.5 0.1 0.1", "must be a class"),
        ("0 0.5 0.5 0.1", "has 3 numbers after the class, which must be a class, then a box cx cy w h (all 1 rows"),
        ("0 0.5 0.5 0.1 0.1 0.9", "has 5 numbers after the class, which must be a class, then a box cx cy w h (1 of 2"),
        ("0 0.5 nan 0.1 0.1", "must be a class"),
        ("0 20 15 10 12", "in 0..1 of the image, not in pixels"),
    ],
)
def test_the_error_names_a_wrong_row_and_its_file(root, row, words):
    with pytest.raises(DataError) as error:
        _label(root, f"0 0.5 0.5 0.5 0.5\n{row}\n")
    assert words in str(error.value)
    assert "labels/train/a.txt row 2" in str(error.value)
    source = YoloDataset(root / "data.yaml", "train", strict=False)
    assert sum(source.faults.errors.values()) == 1
    assert len(source.objects(0).labels) == 1


def test_unusual_rows_are_fixed_and_counted(root):
    source = _label(root, "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0 0.5\n1 1.0 0.5 0.5 0.5\n")
    assert sorted(source.faults.counts.values()) == [1, 1, 1]
    np.testing.assert_allclose(source.objects(0).boxes, [[10, 7.5, 30, 22.5], [30, 7.5, 40, 22.5]])
    assert "a.txt row 3 of image 1" in "".join(source.faults.sentences())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [cat\n", "is not YAML"),
        ("train: \t- : :", "is not YAML"),
        ("\x00", "cannot be read as YAML"),
        ("just text", "holds no fields"),
        ("train: images/train\n", "names=None"),
        ("names: 3\n", "names='3'"),
        ("names: {cat: zero}\n", "names={'cat': 'zero'}"),
        ("names: {0: cat, 00: dog}\n", "with one number twice"),
        ("names: {0: cat, 1: }\n", "names with 1: ''"),
        ("names: [cat, [dog]]\n", "names with 1: ['dog']"),
        ("names:\n  0: cat\n  0: dog\n", "has '0' twice, the second time in line 3"),
        ("names: [cat, dog]\nnc: 3\n", "nc=3, but 2 names"),
        ("names: [cat, dog]\nnc: two\n", "nc='two': it must be the number of classes"),
        ("names: [cat, dog]\nkpt_shape: [17, 4]\n", "kpt_shape=['17', '4']"),
        ("names: [cat, dog]\n", "names no images under 'train' (splits: none)"),
        ("names: [cat, dog]\nval: images/val\n", "names no images under 'train' (splits: val)"),
        ("names: [cat, dog]\ntrain: [[5]]\n", "train=[['5']]"),
        ("names:\n\t0: cat\n", "indent it with spaces, not with tabs"),
        ("names: [cat, dog]\ntrain: pictures\n", "train: pictures, but "),
        ("names: [cat, dog]\ntrain: labels\n", "names no image under 'train'"),
    ],
)
def test_a_wrong_data_file_is_refused_with_one_sentence(root, text, words):
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError) as error:
        YoloDataset(root / "data.yaml", "train")
    assert words in str(error.value)
    assert "data.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_error_names_images_that_cannot_be_opened(root):
    (root / "images" / "train" / "b.png").write_text("no image")
    with pytest.raises(DataError, match=r"b\.png cannot be opened"):
        YoloDataset(root / "data.yaml", "train")
    assert len(YoloDataset(root / "data.yaml", "train", strict=False)) == 1


def test_training_drops_images_that_cannot_be_opened_if_errors_are_skipped(root):
    (root / "images" / "train" / "b.png").write_text("no image")
    data = DataConfig(dataset="yolo", root=str(root), on_error="skip", max_skipped=0.5)
    source = open_source(Config(data=data), "train")
    assert [source.file_name(index) for index in range(len(source))] == [str(root / "images" / "train" / "a.png")]
    (sentence,) = source.faults.sentences()
    assert "images without a readable header were dropped: 1" in sentence
    assert "b.png" in sentence
    data.max_skipped = 0.49
    with pytest.raises(DataError, match=r"1 of 2 training images cannot be opened.*data\.max_skipped=0\.49.*b\.png"):
        open_source(Config(data=data), "train")
    (root / "images" / "val" / "c.png").write_text("no image")
    data.max_skipped = 1.0
    with pytest.raises(DataError, match=r"c\.png cannot be opened"):
        open_source(Config(data=data), "val")


def test_it_is_opened_by_name(root):
    config = Config(data=DataConfig(dataset="yolo", root=str(root)))
    assert len(open_source(config, "train")) == 2
    config.data.sources["yolo"].file = "other.yaml"
    with pytest.raises(DataError, match=r"other\.yaml does not exist.*data\.sources\.yolo\.file"):
        open_source(config, "val")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[no, yes]", ["no", "yes"]),
        ("[010, 1.0]", ["010", "1.0"]),
        ("[2024-01-31, null]", ["2024-01-31", "null"]),
        ("\n  no: 0\n  on: 1", ["no", "on"]),
        ("{dog: 1, cat: 0}\nnc: '2'", ["cat", "dog"]),
        ("classes.txt", ["stop sign", "cat"]),
        (None, ["0", "1"]),
    ],
)
def test_class_names_are_read_as_written(root, names, expected):
    (root / "classes.txt").write_text("stop sign\r\ncat\r\n")
    _write(root, names=names, nc=None if names else 2)
    assert YoloDataset(root / "data.yaml", "val").categories == dict(enumerate(expected))


@pytest.mark.parametrize(
    ("fields", "counted"),
    [
        ({"train": "images\\train"}, 0),
        ({"train": ".\\list.txt"}, 0),
        ({"train": "../../images/train"}, 0),
        ({"path": "/content/set"}, 1),
        ({"path": "C:\\data\\set"}, 1),
        ({"path": None, "train": "/content/set/images/train"}, 1),
        ({"path": None, "train": "D:\\set\\images\\train"}, 1),
        ({"train": "absolute.txt"}, 1),
    ],
)
def test_paths_of_other_systems_and_machines_are_found_near_the_data_file(root, fields, counted):
    (root / "list.txt").write_bytes(b"\xef\xbb\xbf.\\images\\train\\a.png\r\n.\\images\\train\\b.png\r\n")
    (root / "absolute.txt").write_text("/content/set/images/train/a.png\n/content/set/images/train/b.png\n")
    _write(root, **fields)
    source = YoloDataset(root / "data.yaml", "train")
    assert [len(source.objects(index).labels) for index in range(len(source))] == [2, 0]
    assert sum(source.faults.counts.values()) == counted


def test_a_folder_of_another_machine_is_not_mistaken_for_the_folder_of_all_splits(root):
    _write(root, path=None, train="/content/set/train/images")
    with pytest.raises(DataError, match=r"train: /content/set/train/images, but .*does not exist"):
        YoloDataset(root / "data.yaml", "train")


def test_every_split_of_the_data_file_is_opened(root):
    _write(root, val=None, valid="images/val", test="images/train", night="images/val")
    data = root / "data.yaml"
    assert [len(YoloDataset(data, split)) for split in ("train", "val", "valid", "validation", "test")] == [
        2,
        1,
        1,
        1,
        2,
    ]
    with pytest.raises(DataError, match=r"names no images under 'dawn' \(splits: train, valid, test\)"):
        YoloDataset(data, "dawn")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_label_files_with_a_byte_order_mark_are_read(root, encoding):
    path = root / "labels" / "train" / "a.txt"
    path.write_bytes(path.read_text().encode(encoding))
    assert len(YoloDataset(root / "data.yaml", "train").objects(0).labels) == 2


def test_the_error_names_a_missing_folder_of_data_yaml(root):
    shutil.rmtree(root / "images" / "val")
    config = Config(data=DataConfig(root=str(root)))
    assert "val: images/val, which does not exist" in find_layout(config.data).sentence
    assert len(open_source(config, "train")) == 2
    with pytest.raises(DataError, match=r"data\.yaml has val: images/val"):
        open_source(config, "val")
