import os
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from detr_jax import Detector
from detr_jax.checkpoints import CheckpointError, Checkpoints
from detr_jax.config import Config, DataConfig
from detr_jax.data import DataError
from detr_jax.data.placement import place, prediction_buckets
from detr_jax.data.transforms import val_geometry
from detr_jax.inference import FIRST_FRAME, SHRUNK, THIN, TINY
from detr_jax.models import DETR, normalize_images
from detr_jax.results import ImageDetections
from detr_jax.testing import tiny_config

NAMES = {0: "circle", 2: "triangle"}
MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.25)


@pytest.fixture(scope="module")
def model():
    """A tiny detector with random parameters, and its configuration: short sides of 40 pixels, two buckets."""
    config = tiny_config()
    config.model.pixel_mean, config.model.pixel_std = MEAN, STD
    config.data.val_short_side, config.data.max_long_side = 40, 64
    config.data.val_buckets = ((40, 64), (64, 40))
    return DETR(config.model, rngs=nnx.Rngs(np.random.SeedSequence().generate_state(1)[0].item())), config


@pytest.fixture(scope="module")
def detector(model):
    return Detector(*model, NAMES)


@pytest.fixture(scope="module")
def batched(model):
    return Detector(*model, NAMES, batch_size=3)


def _images(rng, count):
    return [rng.integers(0, 256, (*rng.integers(30, 90, 2), 3), dtype=np.uint8) for _ in range(count)]


def _assert_same(ours, reference, tolerance):
    assert ours.size == reference.size
    np.testing.assert_allclose(ours.scores, reference.scores, atol=tolerance)
    np.testing.assert_allclose(ours.boxes, reference.boxes, atol=tolerance * max(ours.size))
    np.testing.assert_array_equal(ours.labels, reference.labels)


def _by_definition(model, config, image):
    """The detections of all queries in one unpadded image: boxes [Q, 4], scores [Q], labels [Q]."""
    height, width = image.shape[:2]
    size = val_geometry((height, width), config.data).size
    resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    sizes = np.array([size], np.int32)
    out = jax.jit(lambda images: model(normalize_images(images, sizes, MEAN, STD), sizes))(resized[None])
    logits, (x, y, w, h) = np.asarray(out.logits[-1, 0], np.float64), np.asarray(out.boxes[-1, 0], np.float64).T
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = (shares / shares.sum(axis=1, keepdims=True))[:, :-1]
    boxes = np.stack([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height], axis=1)
    return boxes, shares.max(axis=1), shares.argmax(axis=1)


def test_labels_are_the_category_ids_of_the_data(model, detector, rng):
    ids = {0: 5, 1: 1_700_000_123, 2: 2**52}
    mapped = Detector(*model, NAMES, category_ids=ids)
    mapped._predict = detector._predict  # the same compiled step
    (image,) = _images(rng, 1)
    plain, found = detector.predict(image, 0), mapped.predict(image, 0)
    assert found.labels.tolist() == [ids[label] for label in plain.labels.tolist()]
    assert found.names == plain.names
    assert [one["category_id"] for one in found.to_coco(3)] == found.labels.tolist()


def test_a_prediction_equals_the_model_on_the_resized_image_sorted_by_score(detector, model, rng):
    (image,) = _images(rng, 1)
    found = detector.predict(image, threshold=0)
    boxes, scores, labels = _by_definition(*model, image)
    order = np.argsort(-scores, kind="stable")
    assert found.size == image.shape[:2]
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int32)
    np.testing.assert_allclose(found.scores, scores[order], atol=1e-4)
    np.testing.assert_allclose(found.boxes, boxes[order], atol=1e-4 * max(image.shape))
    np.testing.assert_array_equal(found.labels, labels[order])
    assert found.names == tuple(NAMES.get(label, str(label)) for label in found.labels.tolist())
    threshold = float(np.median(scores))
    above = detector.predict(image, threshold=threshold)
    assert len(above) == (found.scores >= threshold).sum()
    np.testing.assert_array_equal(above.boxes, found.boxes[: len(above)])


def test_an_image_gets_the_same_detections_alone_and_in_a_batch_and_results_keep_the_order(detector, batched, rng):
    images = _images(rng, 8)
    together = batched.predict(images, threshold=0)
    assert [found.size for found in together] == [image.shape[:2] for image in images]
    for image, found in zip(images, together, strict=True):
        _assert_same(found, detector.predict(image, threshold=0), 1e-4)


def test_paths_pictures_and_arrays_are_the_same_image(detector, tmp_path, rng):
    (image,) = _images(rng, 1)
    grey = image[..., 0]
    Image.fromarray(image).save(tmp_path / "image.png")
    picture = Image.fromarray(image)
    transparent = picture.copy()
    transparent.putalpha(77)
    forms = [tmp_path / "image.png", str(tmp_path / "image.png"), picture, transparent, image]
    reference = detector.predict(image, threshold=0)
    for found in detector.predict(forms, threshold=0):
        _assert_same(found, reference, 0)
    assert transparent.mode == "RGBA"
    in_grey = detector.predict([grey, grey[..., None], Image.fromarray(grey), np.stack([grey] * 3, axis=-1)], 0)
    for found in in_grey[:-1]:
        _assert_same(found, in_grey[-1], 0)
    assert detector.predict([]) == []


def test_the_exif_orientation_of_a_photo_is_applied(detector, tmp_path, rng):
    image = rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    found = detector.predict(tmp_path / "turned.png", threshold=0)
    assert found.size == (50, 30)
    _assert_same(found, detector.predict(np.ascontiguousarray(np.rot90(image, -1)), threshold=0), 0)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), r"Image 0 is an array \[4, 5, 3\] of float32"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"array \[2, 4, 5, 3\]"),
        (np.zeros((4, 5, 2), np.uint8), r"array \[4, 5, 2\]"),
        (np.zeros((0, 5, 3), np.uint8), r"array \[0, 5, 3\]"),
        (7, "Image 0 is of type int"),
        ("nowhere.jpg", "nowhere.jpg does not exist"),
        (".", "is a folder"),
        (os.devnull, "not a regular file"),
        ("a" * 300, "cannot be opened"),
        ("a\0b", "cannot be opened"),
    ],
)
def test_an_input_that_is_not_an_image_raises_an_error_with_its_name(detector, image, words):
    with pytest.raises(DataError, match=words):
        detector.predict(image)
    with pytest.raises(ValueError, match=r"threshold=1\.5"):
        detector.predict([], threshold=1.5)


def test_a_model_with_scores_that_are_not_finite_raises_an_error(model, rng):
    detector = Detector(*model)
    detector.params = jax.tree.map(lambda x: x * np.nan, detector.params)
    for call in (detector.predict, detector.attention):
        with pytest.raises(CheckpointError, match="not finite numbers"):
            call(_images(rng, 1)[0])


def test_attention_has_the_same_detections_and_covers_only_the_cells_of_the_image(detector, rng):
    image = rng.integers(0, 256, (50, 30, 3), dtype=np.uint8)  # 63 x 38 on the bucket 64 x 40; cells of 4 pixels
    looked = detector.attention(image, threshold=0)
    _assert_same(looked.found, detector.predict(image, threshold=0), 1e-4)
    np.testing.assert_array_equal(looked.image, image)
    rows, columns = 16, 10
    assert looked.cells == (63 / 4, 38 / 4)
    assert looked.decoder.shape == (5, rows, columns)
    assert looked.encoder.shape == (rows, columns, rows, columns)
    np.testing.assert_allclose(looked.decoder.sum(axis=(1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(looked.encoder.sum(axis=(2, 3)), 1, atol=1e-5)
    x, y = rng.uniform(0, 30), rng.uniform(0, 50)
    np.testing.assert_array_equal(looked.of_point(x, y), looked.encoder[int(y * 63 / 50 / 4), int(x * 38 / 30 / 4)])
    for outside in ((30, 0), (0, 50), (-1, 4)):
        with pytest.raises(ValueError, match="30 x 50 pixels"):
            looked.of_point(*outside)
    threshold = float(np.median(looked.found.scores))
    np.testing.assert_array_equal(detector.attention(image, threshold).decoder, looked.decoder[:3])


def test_a_stream_yields_each_answer_before_it_computes_the_next(detector, monkeypatch, rng):
    batches, predict = [], detector._predict
    monkeypatch.setattr(detector, "_predict", lambda *batch: batches.append(batch) or predict(*batch))
    for number, _ in enumerate(detector.stream(_images(rng, 3)), 1):
        assert len(batches) == number


def test_a_stream_continues_after_a_damaged_image_and_opens_few_images_ahead(batched, tmp_path, rng):
    image = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    asked = []

    def images():
        for index in range(30):
            asked.append(index)
            yield tmp_path / ("half.jpg" if index == 1 else "whole.jpg")

    answers, ahead = [], []
    for answer in batched.stream(images(), 0):
        answers.append(answer)
        ahead.append(len(asked) - len(answers))
    assert max(ahead) <= 2 * batched.batch_size
    assert sorted(answer.index for answer in answers) == list(range(30))
    results = {answer.index: answer.result for answer in answers}
    assert isinstance(results.pop(1), DataError)
    for found in results.values():
        _assert_same(found, results[0], 1e-4)


def test_unusual_images_are_predicted_with_a_note(detector, tmp_path, rng):
    frames = [Image.fromarray(rng.integers(0, 256, (44, 44), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    images = [np.zeros(shape, np.uint8) for shape in ((1, 1), (5000, 9), (1, 3000), (40, 60))]
    tiny, strip, line, plain = detector.predict(images, 0)
    moving = detector.predict(tmp_path / "moving.gif", 0)
    assert (tiny.notes, plain.notes, moving.notes) == ((TINY,), (), (FIRST_FRAME,))
    assert strip.notes == line.notes == (THIN,)
    _assert_same(moving, detector.predict(frames[0], 0), 0)
    for found in (tiny, strip, line):
        assert np.isfinite(found.boxes).all()


def test_each_bucket_is_compiled_only_once(detector, rng):
    detector.warmup([(40, 40), (50, 50)])
    detector.warmup()
    detector.predict([*_images(rng, 6), np.zeros((9, 4000), np.uint8)])
    assert detector._predict._cache_size() == len(detector.buckets) == 2


def _random_config(rng):
    config = Config(data=DataConfig(val_short_side=int(rng.choice([0, 320, 480, 800]))))
    config.data.max_long_side = max(config.data.val_short_side, int(rng.choice([640, 1333])))
    config.model.position_embedding = str(rng.choice(["sine", "learned"]))
    return config


def test_an_image_of_any_size_has_a_bucket_and_keeps_the_size_of_validation_if_it_can(rng):
    for _ in range(20):
        config = _random_config(rng)
        buckets = prediction_buckets(config)
        stride = config.model.backbone.stride
        assert len(buckets) <= 9
        assert all(side % stride == 0 for bucket in buckets for side in bucket)
        for size in np.rint(np.exp(rng.uniform(0, np.log(20_000), (100, 2)))).astype(int).tolist():
            size = tuple(size)
            bucket, placed, shrunk = place(size, config, buckets)
            assert bucket in buckets
            assert 1 <= placed[0] <= bucket[0]
            assert 1 <= placed[1] <= bucket[1]
            wanted = val_geometry(size, config.data).size
            fits = any(height >= wanted[0] and width >= wanted[1] for height, width in buckets)
            assert shrunk == (not fits)
            if fits:
                assert placed == wanted
            elif min(placed) > 20:
                assert placed[0] / placed[1] == pytest.approx(size[0] / size[1], rel=0.05)


def test_an_image_larger_than_all_buckets_is_shrunk_if_images_are_not_resized(model, rng):
    config = tiny_config()
    config.data.val_buckets = ((32, 32),)
    detector = Detector(model[0], config)
    image = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)
    assert place((64, 48), config, detector.buckets) == ((32, 32), (32, 24), True)
    found = detector.predict(image, 0)
    assert found.size == (64, 48)
    assert found.notes == (SHRUNK,)
    resized = np.asarray(Image.fromarray(image).resize((24, 32), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(found.boxes, 2 * detector.predict(resized, 0).boxes, atol=1e-3)


def test_a_checkpoint_gives_model_config_class_names_and_ema(model, tmp_path, rng):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.class_names = NAMES
    values = nnx.as_pure(nnx.state(model[0]))
    average = jax.tree.map(lambda x: x * np.float32(0.9), values)
    checkpoints.save(3, {"params": values, "ema": average}, model[1])
    checkpoints.close()
    for ema, wanted in ((True, average), (False, values)):
        detector = Detector.from_checkpoint(tmp_path, ema)
        assert detector.config == model[1]
        assert detector.class_names == NAMES
        assert isinstance(detector.model, DETR)
        jax.tree.map(np.testing.assert_array_equal, detector.params, wanted)
    (tmp_path / "detr.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"detr\.pth is a file: .*detr-jax import-weights"):
        Detector.from_checkpoint(tmp_path / "detr.pth")
    with pytest.raises(ValueError, match="batch_size=0"):
        Detector(*model, batch_size=0)


@pytest.fixture
def found(rng):
    boxes = np.cumsum(rng.uniform(1, 9, (4, 4)), axis=1).astype(np.float32)[:, [0, 1, 2, 3]]
    labels = rng.integers(0, 3, 4).astype(np.int32)
    names = tuple(f"class {label}" for label in labels)
    return ImageDetections(boxes, rng.random(4).astype(np.float32), labels, names, (40, 60))


def test_results_convert_to_coco_dictionaries(found):
    rows = found.to_coco(17)
    assert [row["category_id"] for row in rows] == found.labels.tolist()
    assert {row["image_id"] for row in rows} == {17}
    for row, (x0, y0, x1, y1), score in zip(rows, found.boxes.tolist(), found.scores.tolist(), strict=True):
        assert row["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert row["score"] == score


def test_results_convert_to_supervision_detections_if_supervision_is_installed(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        found.to_supervision()
    stand_in = types.SimpleNamespace(Detections=lambda **fields: fields)
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    fields = found.to_supervision()
    np.testing.assert_array_equal(fields["xyxy"], found.boxes)
    np.testing.assert_array_equal(fields["class_id"], found.labels)
    assert fields["data"]["class_name"].tolist() == list(found.names)
