"""Masks and panoptic segments from `Detector`, the validation and the commands."""

import dataclasses
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from detr_jax import Detector
from detr_jax.checkpoints import Checkpoints
from detr_jax.config import BACKGROUND_KINDS, CocoBox, CocoMask, MaskHeadConfig, PanopticQuality, ShapesConfig
from detr_jax.data import CocoPanopticDataset
from detr_jax.data.transforms import val_geometry
from detr_jax.evaluation.validator import Validator
from detr_jax.sharding import create_mesh
from detr_jax.testing import tiny_config
from tests.cli.command import run
from tests.test_masks import interpolated

NAMES = {0: "circle", 1: "square", 2: "plain", 3: "stripes"}
STUFF = {2, 3}


def masks_config(**data):
    config = tiny_config()
    config.model = dataclasses.replace(
        config.model, num_classes=6, num_queries=12, hidden_dim=128, num_heads=8, masks=MaskHeadConfig(block_size=4)
    )
    shapes = ShapesConfig(train_images=16, val_images=10, min_size=40, max_size=64, backgrounds=BACKGROUND_KINDS)
    config.data = dataclasses.replace(
        config.data,
        masks=True,
        sources={"shapes": shapes},
        train_buckets=((64, 64),),
        val_buckets=((64, 96), (96, 64)),
        **{"val_short_side": 56, "max_long_side": 90, **data},
    )
    return config


@pytest.fixture(scope="module")
def model():
    """A detector with random parameters, whose scores are high and whose masks differ by query."""
    config = masks_config()
    seed = np.random.SeedSequence().generate_state(1)[0].item()
    print(f"seed {seed}")
    module = config.model.build(rngs=nnx.Rngs(seed))
    module.class_head.kernel[...] = module.class_head.kernel[...] * 60
    module.class_head.bias[...] = module.class_head.bias[...].at[-1].set(-1e3)  # every query is an object
    module.object_queries[...] = module.object_queries[...] * 100
    for layer in (*module.mask_head.layers, module.mask_head.output):
        layer.bias[...] = jax.random.normal(jax.random.key(seed), layer.bias[...].shape) * 0.3
    module.mask_head.attention.query.kernel[...] = module.mask_head.attention.query.kernel[...] * 12
    first = module.mask_head.layers[0].kernel
    first[...] = first[...].at[:, :, module.mask_head.dim :].multiply(8.0)  # what differs by query
    return module, config


@pytest.fixture(scope="module")
def detector(model):
    return Detector(*model, NAMES, stuff_labels=STUFF)


@pytest.fixture(scope="module")
def batched(model):
    return Detector(*model, NAMES, stuff_labels=STUFF, batch_size=4)


def images_of(rng, count):
    return [rng.integers(0, 256, (*rng.integers(30, 90, 2), 3), dtype=np.uint8) for _ in range(count)]


def by_definition(model, config, image):
    """The mask logits of all queries of an image alone, interpolated to the size that the model saw."""
    size = val_geometry(image.shape[:2], config.data).size
    resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    sizes = jnp.array([size])

    @nnx.jit
    def logits(model, images):
        outputs = model(model.normalize(images, sizes), sizes)
        queries = jnp.arange(outputs.logits.shape[2])[None]
        return model.mask_logits(outputs.mask_features, queries)

    return np.array([interpolated(one, size) for one in np.asarray(logits(model, jnp.asarray(resized[None])))[0]])


def original_pixels(logits, size):
    """Logits [Q, h, w] at the nearest pixels of an image of another size."""
    rows, columns = (
        [int(i * old / new + 1e-9) for i in range(new)] for old, new in zip(logits.shape[1:], size, strict=True)
    )
    return logits[:, rows][:, :, columns]


def test_masks_are_those_of_each_image_alone(model, batched, rng):
    """Of images of several sizes in one bucket, as the original has them in a batch of one."""
    images = images_of(rng, 4)
    for image, found in zip(images, batched.predict(images, 0, masks=True), strict=True):
        pixels = original_pixels(by_definition(*model, image), image.shape[:2])
        scores = np.array(all_scores(batched, image))
        masks = found.masks()
        assert masks.shape == (12, *image.shape[:2])
        sure = np.abs(pixels) > 1e-3
        for mask, score in zip(masks, np.sort(scores)[::-1], strict=True):
            wrong = ((mask != (pixels > 0)) & sure).sum(axis=(1, 2))
            assert wrong[np.abs(scores - score) < 1e-4].min() == 0, "queries with the same score may change places"


def all_scores(detector, image):
    """The score of each query, in their order."""
    size = val_geometry(image.shape[:2], detector.config.data).size
    resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    sizes = jnp.array([size])
    outputs = detector.model(detector.model.normalize(jnp.asarray(resized[None]), sizes), sizes)
    return np.asarray(jax.nn.softmax(outputs.logits[-1, 0])[:, :-1].max(axis=-1)).round(5)


def test_a_batch_of_4_gives_the_segments_of_batches_of_1(model, detector, batched, rng):
    """In every pixel, unless the two highest logits there are equal within rounding."""
    images = images_of(rng, 5)
    together = batched.predict(images, 0.9, masks=True, panoptic=True, panoptic_threshold=0.5)
    compared = 0
    for image, many in zip(images, together, strict=True):
        one = detector.predict(image, 0.9, masks=True, panoptic=True, panoptic_threshold=0.5)
        second, first = np.sort(original_pixels(by_definition(*model, image), image.shape[:2]), axis=0)[-2:]
        sure = first - second > 1e-2
        pairs = np.unique([one.panoptic.ids[sure], many.panoptic.ids[sure]], axis=1)
        assert all(len(np.unique(side)) == len(side) for side in pairs), "the same pixels, whatever their number"
        compared += sure.sum() if pairs.size and pairs.min() > 0 else 0
        assert (one.masks() != many.masks()).mean() < 2e-3
    assert compared > 300, "without segments the test shows nothing"


def test_segments_describe_their_pixels(detector, rng):
    for image in images_of(rng, 4):
        found = detector.predict(image, 0.5, panoptic=True, panoptic_threshold=0.5)
        assert found.run_lengths is None
        panoptic = found.panoptic
        assert panoptic.ids.shape == image.shape[:2]
        assert [one.id for one in panoptic.segments] == list(range(1, len(panoptic) + 1))
        stuff = [one.label for one in panoptic.segments if not one.is_thing]
        assert len(stuff) == len(set(stuff)), "one segment for each class of stuff"
        form = panoptic.to_coco(7, "a.png")
        for segment, one in zip(panoptic.segments, form["segments_info"], strict=True):
            rows, columns = np.nonzero(panoptic.ids == segment.id)
            assert segment.area == len(rows) > 4
            assert segment.name == NAMES.get(segment.label, str(segment.label))
            assert segment.is_thing == (segment.label not in STUFF)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert one == {
                "id": segment.id,
                "category_id": segment.label,
                "area": segment.area,
                "bbox": box,
                "iscrowd": 0,
            }
        assert panoptic.draw(image).size[0] % image.shape[1] == 0


def test_masks_go_where_the_objects_go(detector, rng, monkeypatch):
    (image,) = images_of(rng, 1)
    found = detector.predict(image, 0, masks=True)
    label = int(found.labels[0])
    part = found.only([label], max_detections=2)
    np.testing.assert_array_equal(part.masks(), found.masks()[found.labels == label][:2])
    assert [one["segmentation"] for one in part.to_coco(1)] == list(part.run_lengths)
    json.dumps(part.to_coco(1))
    assert np.asarray(found.draw(image)).ndim == 3
    fake = types.ModuleType("supervision")
    fake.Detections = lambda **fields: fields
    monkeypatch.setitem(sys.modules, "supervision", fake)
    np.testing.assert_array_equal(part.to_supervision()["mask"], part.masks())
    plain = detector.predict(image, 0)
    assert plain.to_supervision()["mask"] is None
    with pytest.raises(ValueError, match="predict with masks=True"):
        plain.masks()


def test_an_image_without_a_detection_has_no_masks(model, rng):
    (image,) = images_of(rng, 1)
    module = nnx.clone(model[0])
    module.class_head.kernel[...] = module.class_head.kernel[...] * 0
    detector = Detector(module, model[1], NAMES, stuff_labels=STUFF)
    found = detector.predict(image, 0.9, masks=True, panoptic=True)
    assert found.masks().shape == (0, *image.shape[:2])
    assert not found.panoptic.ids.any()
    assert len(found.panoptic) == 0


def test_what_cannot_be_predicted_is_said(model, detector, rng):
    config = tiny_config()
    (image,) = images_of(rng, 1)
    plain = Detector(config.model.build(rngs=nnx.Rngs(0)), config)
    with pytest.raises(ValueError, match="predicts no masks"):
        plain.predict(image, masks=True)
    with pytest.raises(ValueError, match=r"panoptic_threshold=0\.4 must be between 0\.5 and 1"):
        detector.predict(image, panoptic=True, panoptic_threshold=0.4)
    with pytest.raises(ValueError, match=r"mask_threshold=1 must be at least 0"):
        detector.predict(image, panoptic=True, mask_threshold=1)


def test_category_ids_and_stuff_come_from_the_checkpoint(model, tmp_path, rng):
    module, config = model
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.class_names, checkpoints.stuff_labels = NAMES, STUFF
    checkpoints.category_ids = {0: 10, 1: 20, 2: 1000, 3: 2000}
    checkpoints.save(0, {"params": nnx.as_pure(nnx.state(module))}, config)
    checkpoints.close()
    loaded = Detector.from_checkpoint(tmp_path)
    assert loaded.stuff_labels == STUFF
    for image in images_of(rng, 3):
        for one in loaded.predict(image, panoptic=True, panoptic_threshold=0.5).panoptic.segments:
            assert one.is_thing == (one.label not in (1000, 2000))


METRICS = {"bbox": CocoBox(), "segm": CocoMask(), "panoptic": PanopticQuality(threshold=0.5)}


def test_metrics_of_a_batch_of_4_are_those_of_batches_of_1(model):
    """The published model of the original loses half of its quality in batches, because padding changes masks."""
    module, config = model
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, metrics=METRICS))
    source = config.data.sources["shapes"].open("val", config.data)
    graph, state = nnx.split(module)
    found = []
    for size in (1, 4):
        config.evaluation.batch_size = size
        validator = Validator(config, source, graph, create_mesh(jax.devices()[:1]))
        stored, metrics = validator.validate((nnx.as_pure(state),))
        assert len(stored.image_ids) == 10
        found.append(metrics)
    assert found[0].keys() == found[1].keys()
    assert {"AP", "segm_AP", "panoptic_PQ", "panoptic_PQ/plain", "segm_AP/circle"} <= found[0].keys()
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, abs=2e-3), name


CONFIG = """
from detr_jax.config import *
from tests.test_mask_inference import METRICS, masks_config

def get_config():
    config = masks_config(val_short_side=0)
    config.data.val_buckets = ((64, 64),)
    config.loss.terms = mask_terms()
    config.evaluation.metrics = METRICS
    config.training.steps, config.training.checkpoint_every = 6, 100
    return config
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, one_device):
    import functools

    from detr_jax.training import loop

    folder = tmp_path_factory.mktemp("run")
    (folder / "small.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(loop, "train", functools.partial(loop.train, mesh=one_device))
        result = run("train", "--config", folder / "small.py", "--workdir", folder / "work")
    assert result.exit_code == 0, result.output
    return folder / "work"


def test_evaluate_prints_the_logged_numbers_of_masks(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr("detr_jax.sharding.jax.devices", lambda: jax.local_devices()[:1])
    result = run("evaluate", workdir, "--json", tmp_path / "numbers.json")
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    logged = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("val/AP", "val/segm_AP", "val/panoptic_PQ", "val/panoptic_PQ_stuff", "val/panoptic_SQ_things"):
        assert numbers[name] == logged[name], name
    assert "panoptic_PQ of each class:" in result.output
    assert "segm_AP of each class:" in result.output


def test_evaluate_computes_the_metrics_that_are_named(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr("detr_jax.sharding.jax.devices", lambda: jax.local_devices()[:1])
    result = run("evaluate", workdir, "--json", tmp_path / "numbers.json", "--metrics", "segm, bbox")
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    logged = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert numbers["val/segm_AP"] == logged["val/segm_AP"]
    assert not any("panoptic" in name for name in numbers)
    result = run("evaluate", workdir, "--metrics", "pq")
    assert result.exit_code == 1
    assert "--metrics: 'pq' is not one of bbox, segm, panoptic." in result.output


def test_evaluate_computes_masks_of_a_model_that_was_trained_without_their_metrics(model, tmp_path, monkeypatch):
    """As a released model that was imported: its configuration has the metrics of boxes."""
    monkeypatch.setattr("detr_jax.sharding.jax.devices", lambda: jax.local_devices()[:1])
    module, config = model
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, masks=False))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(0, {"params": nnx.as_pure(nnx.state(module))}, config)
    checkpoints.close()
    flags = ("--json", tmp_path / "numbers.json", "--metrics", "bbox,segm,panoptic")
    result = run("evaluate", tmp_path, *flags)
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert {"val/AP", "val/segm_AP", "val/panoptic_PQ"} <= numbers.keys()


def test_the_report_has_the_numbers_and_curves_of_masks(workdir, tmp_path):
    result = run("plot", workdir, "--out", tmp_path / "report")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report" / "index.html").read_text()
    logged = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("AP", "segm_AP", "panoptic_PQ", "panoptic_PQ_stuff"):
        assert name in page
        assert f"{logged[f'val/{name}']:.3f}" in page
    for chart in ("segm_ap", "panoptic_pq", "panoptic_sq", "panoptic_rq", "loss_dice"):
        assert list((tmp_path / "report").glob(f"*{chart}*.png")) or chart == "loss_dice"


def test_predict_writes_coco_s_panoptic_format(model, tmp_path, rng):
    module, config = model
    checkpoints = Checkpoints(tmp_path / "model" / "checkpoints", keep=1)
    checkpoints.class_names, checkpoints.stuff_labels = NAMES | {4: "four", 5: "five"}, STUFF
    checkpoints.save(0, {"params": nnx.as_pure(nnx.state(module))}, config)
    checkpoints.close()
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images_of(rng, 3)):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    out = tmp_path / "out"
    flags = ("--masks", "--panoptic", "--panoptic-threshold", 0.5, "--threshold", 0)
    result = run("predict", tmp_path / "model", tmp_path / "photos", "--out", out, *flags)
    assert result.exit_code == 0, result.output
    for entry in json.loads((out / "predictions.json").read_text()):
        assert (out / entry["picture"]).is_file()
        assert (out / "panoptic_pictures" / entry["picture"]).is_file()
        assert all(one["segmentation"]["size"] == [entry["height"], entry["width"]] for one in entry["detections"])
    source = CocoPanopticDataset(tmp_path / "photos", out / "panoptic.json", out / "panoptic", strict=False)
    assert len(source) == 3
    assert source.stuff_labels == STUFF
    for index in range(3):
        found = source.panoptic(index)
        assert found.areas.tolist() == [int((found.ids == one).sum()) for one in found.segment_ids]


def test_predict_keeps_files_that_are_not_its_own(model, tmp_path, rng):
    module, config = model
    checkpoints = Checkpoints(tmp_path / "model" / "checkpoints", keep=1)
    checkpoints.save(0, {"params": nnx.as_pure(nnx.state(module))}, config)
    checkpoints.close()
    out = tmp_path / "out"
    (out / "panoptic").mkdir(parents=True)
    (out / "panoptic_pictures").mkdir()
    (tmp_path / "photos").mkdir()
    for folder in (out / "panoptic", out / "panoptic_pictures"):
        (folder / "0.png").write_text("precious")
    for number, image in enumerate(images_of(rng, 2)):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    args = ("predict", tmp_path / "model", tmp_path / "photos", "--out", out, "--panoptic")
    flags = ("--panoptic-threshold", 0.5)
    for _ in range(2):  # the second prediction overwrites the files of the first one
        result = run(*args, *flags)
        assert result.exit_code == 0, result.output
        for folder in (out / "panoptic", out / "panoptic_pictures"):
            assert sorted(file.name for file in folder.iterdir()) == ["0-2.png", "0.png", "1.png"]
            assert (folder / "0.png").read_text() == "precious"
    form = json.loads((out / "panoptic.json").read_text())
    used = {one["category_id"] for entry in form["annotations"] for one in entry["segments_info"]}
    assert used <= {one["id"] for one in form["categories"]}, "also if the checkpoint has no names"
    total = sum(len(entry["segments_info"]) for entry in form["annotations"])
    assert f"and {total} panoptic segments found in 2 images" in result.output

    result = run("predict", tmp_path / "model", out / "panoptic" / "1.png", "--out", out, "--panoptic")
    assert result.exit_code == 1
    assert "Files would be written to the folder of" in result.output
    result = run("predict", tmp_path / "model", tmp_path / "photos", "--out", out, *flags)
    assert result.exit_code == 1
    assert "--panoptic-threshold needs --panoptic." in result.output
    (out / "panoptic.json").write_text('{"images": [], "annotations": []}')
    result = run(*args)
    assert result.exit_code == 1
    assert "is not a file of an earlier prediction" in result.output
    assert (out / "panoptic.json").read_text() == '{"images": [], "annotations": []}'


def test_predict_refuses_masks_of_a_model_without_them(tmp_path):
    config = tiny_config()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(0, {"params": nnx.as_pure(nnx.state(config.model.build(rngs=nnx.Rngs(0))))}, config)
    checkpoints.close()
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    result = run("predict", tmp_path, tmp_path / "a.png", "--panoptic", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "--panoptic needs a model with a mask head" in result.output
    assert not (tmp_path / "out").exists()


def test_check_data_draws_and_counts_masks(tmp_path):
    result = run("make-shapes", tmp_path / "shapes", "--train", 6, "--val", 3, "--backgrounds")
    assert result.exit_code == 0, result.output
    for dataset in ("coco", "coco_panoptic"):
        picture = tmp_path / f"{dataset}.png"
        flags = ("--dataset", dataset, "--config.data.masks=True", "--picture", picture)
        result = run("check-data", tmp_path / "shapes", *flags)
        assert result.exit_code == 0, result.output
        assert "with at least one pixel" in result.output
        plain = run("check-data", tmp_path / "shapes", "--dataset", dataset, "--picture", tmp_path / "plain.png")
        assert plain.exit_code == 0, plain.output
        assert picture.read_bytes() != (tmp_path / "plain.png").read_bytes(), "masks are drawn"


def test_an_artefact_gives_the_masks_of_the_detector(model, detector, tmp_path, rng):
    from detr_jax.export import ExportError, export_model
    from detr_jax.export_loader import Detector as Loaded

    module, config = model
    export_model(module, config, tmp_path / "out", platforms=("cpu",), masks=True)
    images = images_of(rng, 3)
    for image, found in zip(images, Loaded(tmp_path / "out").predict(images, 0), strict=True):
        expected = detector.predict(image, 0, masks=True)
        assert found.masks.shape == (12, *image.shape[:2])
        by_score = {round(float(score), 4): mask for score, mask in zip(expected.scores, expected.masks(), strict=True)}
        agreeing = [
            (by_score[round(float(score), 4)] == mask).mean()
            for score, mask in zip(found.scores, found.masks, strict=True)
            if round(float(score), 4) in by_score
        ]
        assert np.median(agreeing) > 0.97, "the loader resizes images with jax, and Detector with Pillow"
    plain = tiny_config()
    with pytest.raises(ExportError, match="predicts no masks"):
        export_model(plain.model.build(rngs=nnx.Rngs(0)), plain, tmp_path / "plain", masks=True)
