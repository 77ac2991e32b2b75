"""Masks of data sets: their pixels, every geometric change, and what is wrong with them."""

import json
import pickle
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detr_jax.config import Config, ConfigError, DataConfig, ShapesConfig, SourceConfig, check_data
from detr_jax.data import CocoDataset, DataError, Objects, Sample, ShapesDataset, TrainPlan, YoloDataset, batches
from detr_jax.data.labelme import LabelmeDataset
from detr_jax.data.layouts import WHOLE
from detr_jax.data.masks import Bitmaps, Masks
from detr_jax.data.opening import open_to_check
from detr_jax.data.transforms import DRAWS, train_geometries, transform_objects, transform_picture, val_geometry
from detr_jax.masks import unpack_masks

SIZE = (60, 80)  # height, width


def coco_folder(tmp_path, annotations, size=SIZE):
    """A data set of one image per list of segmentations."""
    images, rows = [], []
    for image_id, segmentations in enumerate(annotations, start=1):
        name = f"{image_id}.png"
        Image.new("RGB", size[::-1], (90, 120, 40)).save(tmp_path / name)
        images.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
        for segmentation in segmentations:
            box = {"bbox": place(segmentation), "area": 600, "iscrowd": 0, "category_id": 1, "image_id": image_id}
            rows.append(
                {"id": len(rows) + 1, **box, **({"segmentation": segmentation} if segmentation != "none" else {})}
            )
    form = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "instances_train.json").write_text(json.dumps(form))
    return tmp_path / "instances_train.json"


def place(segmentation):
    """The bounding box xywh of polygons; a fixed one for anything else or outside of the image."""
    try:
        x, y = (np.concatenate([polygon[axis::2] for polygon in segmentation]) for axis in (0, 1))
        box = [x.min(), y.min(), np.ptp(x), np.ptp(y)]
    except (TypeError, ValueError, KeyError, IndexError):
        return [5, 5, 30, 20]
    return [float(value) for value in box] if all(abs(value) < 150 for value in box) else [5, 5, 30, 20]


def opened(tmp_path, annotations, **fields):
    return CocoDataset(tmp_path, coco_folder(tmp_path, annotations), masks=True, **fields)


def random_polygon(rng):
    corners = rng.uniform(-10, 90, (int(rng.integers(3, 9)), 2))
    return np.round(corners, 2).ravel().tolist()


def test_polygons_and_run_lengths_have_the_pixels_of_pycocotools(tmp_path, rng):
    bitmap = rng.random(SIZE) < 0.4
    runs = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    flat = bitmap.ravel(order="F").astype(int)
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *([] if not flat[0] else [0]), *changes, flat.size]).tolist()
    segmentations = [
        [random_polygon(rng)],
        [random_polygon(rng), random_polygon(rng)],
        {"size": list(SIZE), "counts": runs["counts"].decode()},
        {"size": list(SIZE), "counts": counts},
    ]
    masks = opened(tmp_path, [segmentations]).objects(0).masks
    found = masks.bitmaps()
    for k in (0, 1):
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentations[k], *SIZE)))
        np.testing.assert_array_equal(found[k], expected)
    np.testing.assert_array_equal(found[2], bitmap)
    np.testing.assert_array_equal(found[3], bitmap)
    np.testing.assert_array_equal(unpack_masks(masks.packed(), SIZE[0]), found)


@pytest.mark.parametrize(
    ("segmentation", "sentence"),
    [
        ([[1, 1, 30, 1, 30]], "annotation 1 of image 1 has a polygon of 5 numbers, which must be pairs x, y"),
        ([[1, 1, 30, float("nan"), 30, 20]], "annotation 1 of image 1 has a polygon with a number that is not finite"),
        ([[1, 1, 30, float("inf"), 30, 20]], "annotation 1 of image 1 has a polygon with a number that is not finite"),
        ([], "annotation 1 of image 1 has an empty segmentation"),
        ("none", "annotation 1 of image 1 has no segmentation"),
        (None, "annotation 1 of image 1 has no segmentation"),
        ([["a", 1, 2, 3, 4, 5]], "has segmentation=.*which must be a list of polygons"),
        ("text", "has segmentation='text', which must be a list of polygons"),
        ({"counts": "abc"}, "which must be a list of polygons"),
        ({"size": [80, 60], "counts": "0"}, r"run lengths of size \[80, 60\], and its image has \[60, 80\]"),
        ({"size": [60, 80], "counts": [10, 20]}, "run lengths with the sum 30, which must be 4800"),
        ({"size": [60, 80], "counts": [-10, 4810]}, "run lengths below 0"),
        ({"size": [60, 80], "counts": "\x01\x02"}, "are not COCO's compressed run lengths|which must be"),
        ({"size": [60, 80], "counts": "00"}, "run lengths with the sum 0"),
    ],
)
def test_a_mask_that_cannot_be_read_is_named(tmp_path, segmentation, sentence):
    with pytest.raises(DataError, match=sentence):
        opened(tmp_path, [[segmentation]])
    counted = opened(tmp_path, [[segmentation, [[1, 1, 30, 1, 30, 20]]]], strict=False)
    assert sum(counted.faults.errors.values()) == 1
    assert len(counted.objects(0).masks) == len(counted.objects(0).labels) == 1


def scaled(polygons, scale):
    return [(np.array(polygon) * scale).tolist() for polygon in polygons]


def test_masks_of_another_unit_than_the_boxes_are_named(tmp_path, rng):
    """Polygons in 0..1 beside boxes in pixels would train on empty masks."""
    polygons = [[[10, 10, 50, 12, 48, 50, 11, 40]] for _ in range(6)]
    file = coco_folder(tmp_path, [polygons])
    form = json.loads(file.read_text())
    for one in form["annotations"]:
        one["segmentation"] = scaled(one["segmentation"], 0.01)
    file.write_text(json.dumps(form))
    with pytest.raises(DataError, match="6 of 6 masks lie elsewhere than their boxes"):
        CocoDataset(tmp_path, file, masks=True)
    for one in form["annotations"][1:]:
        one["segmentation"] = scaled(one["segmentation"], 100)
    file.write_text(json.dumps(form))
    source = CocoDataset(tmp_path, file, masks=True)
    assert source.faults.counts["masks that lie elsewhere than their boxes"] == 1


def test_crowds_without_a_segmentation_are_dropped(tmp_path):
    file = coco_folder(tmp_path, [[[[1, 1, 30, 1, 30, 20]], []]])
    form = json.loads(file.read_text())
    form["annotations"][1]["iscrowd"] = 1
    file.write_text(json.dumps(form))
    source = CocoDataset(tmp_path, file, masks=True)
    assert source.faults.counts["crowds without a segmentation were dropped"] == 1
    assert len(source.ground_truth()["annotations"]) == 1


def test_polygons_far_outside_of_the_image_are_named(tmp_path):
    """A mask of this polygon would take gigabytes."""
    with pytest.raises(DataError, match="annotation 1 of image 1"):
        opened(tmp_path, [[[[1, 1, 3e9, 1, 30, 20]]]])


def test_degenerate_polygons_are_counted(tmp_path):
    good = [1, 1, 30, 1, 30, 20]
    source = opened(tmp_path, [[[[1, 1, 9, 9]]], [[good, [3, 3]]], [[[200, 200, 300, 200, 300, 300]]]])
    kinds = source.faults.counts
    assert kinds["annotations whose polygons have fewer than three corners were dropped"] == 1
    assert kinds["polygons with fewer than three corners were ignored"] == 1
    assert kinds["annotations whose polygons lie outside of the image have an empty mask"] == 1
    assert [len(source.objects(i).labels) for i in range(3)] == [0, 1, 1]
    assert source.objects(1).masks.bitmaps().any()
    assert not source.objects(2).masks.bitmaps().any()


def test_four_numbers_at_the_beginning_are_no_box(tmp_path):
    """COCO's library reads a first polygon of four numbers, and then all others, as boxes."""
    good = [1, 1, 30, 1, 30, 20]
    source = opened(tmp_path, [[[[3, 3, 5, 5], good]]])
    expected = coco_mask.decode(coco_mask.frPyObjects([good], *SIZE))[..., 0]
    np.testing.assert_array_equal(source.objects(0).masks.bitmaps()[0], expected)


def step_by_step(mask, geometry):
    """The operations of a geometry on a whole bitmap, one after another, as the original carries them out."""

    def resized(bitmap, size):
        rows, columns = (
            [int(np.floor(i * (old / new) + 1e-9)) for i in range(new)]
            for old, new in zip(bitmap.shape, size, strict=True)
        )
        return bitmap[rows][:, columns]

    if geometry.flip:
        mask = mask[:, ::-1]
    if geometry.crop is not None:
        top, left, height, width = geometry.crop
        mask = resized(mask, geometry.crop_from)[top : top + height, left : left + width]
    return resized(mask, geometry.size)


def test_masks_follow_every_augmentation(rng):
    """Each shape is painted alone, so the pixels of the changed picture tell where its mask must be."""
    config = ShapesConfig(train_images=40, min_size=150, max_size=300, max_objects=5)
    source = ShapesDataset(config, "train", masks=True)
    data = DataConfig(
        train_short_sides=(180, 256), crop_short_sides=(200, 240), crop_min=100, crop_max=190, max_long_side=400
    )
    cropped = flipped = empty = 0
    for index in range(len(source)):
        size = tuple(source.sizes[index].tolist())
        geometry = train_geometries(source.sizes[index : index + 1], rng.random((1, DRAWS)), data)[0]
        drawing = source.draw(index)
        objects = source.objects(index)
        found = transform_objects(geometry, objects, size)
        cropped, flipped = cropped + (geometry.crop is not None), flipped + geometry.flip
        bitmaps = found.masks.bitmaps()
        assert bitmaps.shape == (len(found.labels), *geometry.size)
        np.testing.assert_array_equal(unpack_masks(found.masks.packed(), geometry.size[0]), bitmaps)
        kept = [k for k in range(len(objects.labels)) if k in found.masks.kept]
        for k, bitmap, box in zip(kept, bitmaps, found.boxes, strict=True):
            empty += not bitmap.any()
            np.testing.assert_array_equal(bitmap, step_by_step(drawing.masks[k], geometry))
            painted = Image.fromarray(np.repeat(drawing.masks[k][..., None], 3, axis=2).astype(np.uint8) * 255)
            there = np.asarray(transform_picture(geometry, painted, size))[..., 0] >= 128
            union = (bitmap | there).sum()
            if union > 400:
                assert (bitmap & there).sum() / union > 0.65, "the original's choice of pixels moves masks by a pixel"
            rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
            if len(rows):
                inner = (columns[0] + 1.5, rows[0] + 1.5, columns[-1] - 0.5, rows[-1] - 0.5)
                assert (np.array(inner[:2]) >= box[:2] - 4).all()
                assert (np.array(inner[2:]) <= box[2:] + 4).all()
    assert cropped > 5
    assert flipped > 5


def test_an_unchanged_size_keeps_every_pixel(rng):
    masks = rng.random((3, 20, 33)) < 0.5
    objects = Objects(np.array([[0, 0, 5, 5]] * 3, np.float32), np.zeros(3, np.int32), masks)
    data = DataConfig(val_short_side=0)
    found = transform_objects(val_geometry((20, 33), data), objects, (20, 33))
    np.testing.assert_array_equal(found.masks.bitmaps(), masks)


def test_batches_hold_the_masks_of_their_objects(rng):
    config = Config(data=DataConfig(dataset="shapes", masks=True, num_threads=2, train_buckets=((96, 96),)))
    data = config.data
    data.sources["shapes"] = ShapesConfig(train_images=16, max_objects=4, min_size=40, max_size=64)
    data.train_short_sides, data.crop_short_sides = (48, 64), ()
    data.max_long_side = 96
    source = data.sources["shapes"].open("train", data)
    plan = TrainPlan(source, data, 4, 0, 32)
    stream = batches(plan, source, 4, data)
    for planned, batch in zip(plan.epoch(0), stream, strict=False):
        masks = batch.inputs.targets.masks
        assert masks.shape == (4, 4, 12, 96)
        for image, bits, count in zip(planned.images, masks, batch.inputs.targets.count, strict=True):
            size = tuple(source.sizes[image.source_index].tolist())
            expected = transform_objects(image.geometry, source.objects(image.source_index), size).masks.bitmaps()
            height, width = image.geometry.size
            whole = unpack_masks(bits, 96)
            np.testing.assert_array_equal(whole[:count, :height, :width], expected)
            assert whole.sum() == expected.sum(), "padding has no mask"


def test_worker_processes_see_the_same_masks(tmp_path, rng):
    segmentations = [[[random_polygon(rng)] for _ in range(3)], [], [[random_polygon(rng)]]]
    source = opened(tmp_path, segmentations)
    copy = pickle.loads(pickle.dumps(source))
    for index in range(3):
        np.testing.assert_array_equal(copy.objects(index).masks.bitmaps(), source.objects(index).masks.bitmaps())
    part = source.select(np.array([False, True, True]))
    np.testing.assert_array_equal(part.objects(1).masks.bitmaps(), source.objects(2).masks.bitmaps())
    assert [one["image_id"] for one in part.ground_truth()["annotations"]] == [3]


def test_the_ground_truth_has_run_lengths_of_objects_and_crowds(tmp_path, rng):
    file = coco_folder(tmp_path, [[[random_polygon(rng)], [random_polygon(rng)]]])
    form = json.loads(file.read_text())
    form["annotations"][1]["iscrowd"] = 1
    file.write_text(json.dumps(form))
    source = CocoDataset(tmp_path, file, masks=True)
    assert len(source.objects(0).masks) == 1
    for written, found in zip(form["annotations"], source.ground_truth()["annotations"], strict=True):
        expected = coco_mask.merge(coco_mask.frPyObjects(written["segmentation"], *SIZE))
        np.testing.assert_array_equal(coco_mask.decode(found["segmentation"]), coco_mask.decode(expected))


def test_masks_are_not_read_unless_they_are_asked_for(tmp_path):
    file = coco_folder(tmp_path, [[[[1, 1, 30, 1, 30]]]])
    source = CocoDataset(tmp_path, file)
    assert source.objects(0).masks is None
    assert "segmentation" not in source.ground_truth()["annotations"][0]


def yolo_folder(tmp_path, rows):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("\n".join(rows) + "\n")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [one, two]\ntask: segment\n")
    return tmp_path / "data.yaml"


def test_yolo_s_polygons_are_masks(tmp_path, rng):
    polygons = [np.round(rng.uniform(0, 1, 2 * number), 4) for number in (3, 5, 8, 4)]
    rows = [f"{k % 2} " + " ".join(map(str, polygon)) for k, polygon in enumerate(polygons)]
    rows.append("1 0.5 0.5 0.2 0.4")
    source = YoloDataset(yolo_folder(tmp_path, rows), "train", masks=True)
    masks = source.objects(0).masks.bitmaps()
    for polygon, mask in zip(polygons, masks, strict=False):
        corners = (polygon.reshape(-1, 2) * np.array(SIZE[::-1])).ravel().tolist()
        np.testing.assert_array_equal(mask, coco_mask.decode(coco_mask.frPyObjects([corners], *SIZE))[..., 0])
    box = np.zeros(SIZE, bool)
    box[18:42, 32:48] = True
    np.testing.assert_array_equal(masks[-1], box)
    assert source.faults.counts["boxes among polygons got a rectangle as their mask"] == 1


def test_yolo_s_boxes_are_refused_where_masks_are_needed(tmp_path):
    file = yolo_folder(tmp_path, ["0 0.5 0.5 0.2 0.4", "1 0.25 0.25 0.1 0.1", "1 0.75 0.25 0.1 0.1"])
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [one, two]\ntask: detect\n")
    with pytest.raises(DataError, match=r"are boxes .*and data.masks=True needs polygons"):
        YoloDataset(file, "train", masks=True)


def test_labelme_s_shapes_are_masks(tmp_path, rng):
    polygon = [[5.0, 5.0], [40.0, 8.0], [30.0, 50.0]]
    pixels = rng.random((10, 14)) < 0.5
    pixels[0, 0] = pixels[-1, -1] = True
    import base64
    import io

    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255).save(content, "PNG")
    shapes = [
        {"label": "a", "points": polygon, "shape_type": "polygon"},
        {"label": "b", "points": [[10, 12], [30, 40]], "shape_type": "rectangle"},
        {"label": "b", "points": [[40, 30], [50, 30]], "shape_type": "circle"},
        {
            "label": "a",
            "points": [[20, 25], [33, 34]],
            "shape_type": "mask",
            "mask": base64.b64encode(content.getvalue()).decode(),
        },
    ]
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "x.png")
    (tmp_path / "x.json").write_text(json.dumps({"shapes": shapes, "imagePath": "x.png"}))
    masks = LabelmeDataset(tmp_path, WHOLE, masks=True).objects(0).masks.bitmaps()
    corners = np.array(polygon).ravel().tolist()
    np.testing.assert_array_equal(masks[0], coco_mask.decode(coco_mask.frPyObjects([corners], *SIZE))[..., 0])
    rectangle = np.zeros(SIZE, bool)
    rectangle[12:40, 10:30] = True
    np.testing.assert_array_equal(masks[1], rectangle)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    disc = (x - 40) ** 2 + (y - 30) ** 2 <= 100
    assert (masks[2] & disc).sum() / (masks[2] | disc).sum() > 0.9
    np.testing.assert_array_equal(masks[3][25:35, 20:34], pixels)
    assert masks[3].sum() == pixels.sum()
    shapes[0]["shape_type"] = "line"
    (tmp_path / "x.json").write_text(json.dumps({"shapes": shapes, "imagePath": "x.png"}))
    with pytest.raises(DataError, match=r"x\.json shape 1 .*has no segmentation"):
        LabelmeDataset(tmp_path, WHOLE, masks=True)


def test_kinds_without_masks_are_refused():
    with pytest.raises(ConfigError, match=r"needs a data set with masks .*coco_panoptic.*, and voc has none"):
        check_data(DataConfig(dataset="voc", root="folder", masks=True))


class Own(SourceConfig):
    """A data set of a user's own, with arrays of masks."""

    reads_masks = True

    def open(self, split, data):
        return OwnDataset()


class OwnDataset:
    categories: ClassVar[dict] = {0: "blob"}
    category_ids: ClassVar[dict] = {}
    image_ids = (1, 2)
    sizes = np.array([(20, 30), (20, 30)])
    max_objects = 2
    shape = (20, 30)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Sample(np.zeros((20, 30, 3), np.uint8), self.objects(index))

    def objects(self, index):
        masks = np.zeros((2, *self.shape), bool)
        masks[0, 2:9, 3:12] = True
        return Objects(np.array([[3, 2, 12, 9], [40, 40, 50, 50]], np.float32), np.zeros(2, np.int32), masks)

    def ground_truth(self):
        return {"images": [], "annotations": [], "categories": []}


def batch_of(source, data):
    plan = TrainPlan(source, data, 1, 0, 8)
    return next(iter(batches(plan, source, 1, data)))


def test_a_data_set_of_one_s_own_gives_arrays_of_masks():
    data = DataConfig(masks=True, train_short_sides=(), crop_short_sides=(), val_short_side=0, flip=False)
    source = OwnDataset()
    targets = batch_of(source, data).inputs.targets
    assert targets.count.tolist() == [1], "the second object lies outside of the image"
    assert unpack_masks(targets.masks[0, 0], 24)[:20, :30][2:9, 3:12].all()
    source.shape = (20, 31)
    with pytest.raises(
        DataError, match=r"masks of shape \[2, 20, 31\]: data.masks=True needs masks of shape \[2, 20, 30\]"
    ):
        batch_of(source, data)


def test_check_data_counts_masks_and_what_is_wrong_with_them(tmp_path):
    good = [1, 1, 30, 1, 30, 20]
    coco_folder(tmp_path, [[[good], [[1, 1, 30, 1, 30]]], [[[200, 200, 300, 200, 300, 300]]], [[good]]])
    from detr_jax.data.checking import check_source

    data = DataConfig(dataset="coco", root=str(tmp_path), masks=True, val_share=0.3)
    data.sources["coco"].train_annotations = "instances_train.json"
    source = open_to_check(Config(data=data), ["train"])["train"]
    report = check_source(source, 100)
    lines = "\n".join(report.lines())
    assert f"{report.masks} mask" in lines
    assert "polygons with an odd count of numbers: 1" in lines
    assert report.masks == int(report.objects.sum()) - sum(
        count for kind, count in report.faults.counts.items() if kind == "images have masks without a pixel"
    )


def test_masks_tell_their_number_and_size():
    assert repr(Masks.of(Bitmaps(np.zeros((3, 4, 5), bool)))) == "Masks(3 of 4 x 5 pixels)"
