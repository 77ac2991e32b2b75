"""Every layout gives the numbers that transformers computed from the same weights (see `make_fixtures`)."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from detr_jax.weights import WeightsError, load_pretrained, pretrained, read_pretrained
from tests.outputs import model_outputs
from tests.weights import framework_states as states
from tests.weights.fixture_images import BUCKET, SIZES, padded

LAYOUTS = {
    "facebook": states.facebook,
    "panoptic": lambda state: {f"detr.{name}": value for name, value in states.facebook(state).items()},
    "distributed": lambda state: {f"module.{name}": value for name, value in states.facebook(state).items()},
    "detectron2": states.detectron2,
    "mmdetection": states.mmdetection,
    "transformers4": states.transformers4,
    "transformers4-timm": states.transformers_with_timm,
    "transformers5": lambda state: state,
}
KINDS = {"panoptic": "facebook", "distributed": "facebook"}


def save(path, state):
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, path)
    return path


def assert_outputs(model, images, sizes, expected, *, coco_ids=False):
    found = {key: np.asarray(x) for key, x in model_outputs(model, jnp.asarray(images), jnp.asarray(sizes)).items()}
    if coco_ids:
        unused = np.delete(found["logits"], states.coco_outputs(), axis=-1)
        assert unused.shape[-1] == 11
        assert (np.exp(unused - found["logits"].max()) == 0).all(), "an unused id has a probability"
        found["logits"] = found["logits"][..., states.coco_outputs()]
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("fixture", ["bottleneck", "basic_learned"])
def test_every_layout_gives_the_original_s_predictions(request, tmp_path, fixture, name):
    numbers = request.getfixturevalue(fixture)
    path = save(tmp_path / "model.safetensors", LAYOUTS[name](numbers.weights))
    weights = read_pretrained(path)
    assert weights.kind == KINDS.get(name, name.split("-")[0].replace("transformers", "huggingface").rstrip("45"))
    coco_ids = name in ("detectron2", "mmdetection")
    assert weights.config.num_classes == (91 if coco_ids else 80)
    images, sizes, expected = numbers.case("batch")
    assert_outputs(load_pretrained(path, mask_padding=False), images, sizes, expected, coco_ids=coco_ids)


@pytest.mark.parametrize("fixture", ["bottleneck", "basic_learned"])
def test_padding_to_a_bucket_does_not_change_the_predictions(request, tmp_path, fixture):
    numbers = request.getfixturevalue(fixture)
    model = load_pretrained(save(tmp_path / "model.safetensors", numbers.weights))
    together = model_outputs(model, jnp.asarray(padded(numbers.images, (128, 160))), jnp.asarray(SIZES))
    for i in range(2):
        expected = numbers.case(f"alone{i}")[2]
        for key in ("logits", "boxes"):
            np.testing.assert_allclose(together[key][i], expected[key][0], atol=1e-4)


def test_dilation_is_given_and_results_in_dc5(bottleneck, tmp_path):
    path = save(tmp_path / "model.safetensors", states.facebook(bottleneck.weights))
    images, sizes, expected = bottleneck.case("dc5/batch")
    plain, dilated = (load_pretrained(path, dilation=dilation, mask_padding=False) for dilation in (False, True))
    assert_outputs(dilated, images, sizes, expected)
    difference = plain(jnp.asarray(images), jnp.asarray(sizes)).logits[-1] - expected["logits"]
    assert np.abs(difference).max() > 0.01


def test_torchvision_gives_only_the_backbone(bottleneck, tmp_path):
    weights = read_pretrained(save(tmp_path / "resnet.safetensors", states.torchvision(bottleneck.weights)))
    detector = read_pretrained(save(tmp_path / "detr.safetensors", states.facebook(bottleneck.weights)))
    assert weights.kind == "torchvision"
    assert weights.config is None
    assert weights.backbone == detector.backbone
    backbone = {path: value for path, value in detector.params.items() if path.startswith("backbone/")}
    assert weights.params.keys() == backbone.keys()
    for path, value in backbone.items():
        np.testing.assert_array_equal(weights.params[path], value)


def test_the_json_files_of_a_hugging_face_folder_are_read(bottleneck, tmp_path):
    save(tmp_path / "model.safetensors", states.transformers_with_timm(bottleneck.weights))
    config = {
        "model_type": "detr",
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "dilation": True,
        "use_timm_backbone": True,
        "id2label": {"0": "cat", "1": "dog"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = read_pretrained(tmp_path)
    assert weights.config.num_heads == 4
    assert weights.config.backbone.dilation
    assert weights.class_names == {0: "cat", 1: "dog"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "use_timm_backbone": False}))
    assert not read_pretrained(tmp_path).config.backbone.dilation, "transformers dilates timm backbones only"


def test_half_precision_becomes_float32(bottleneck, tmp_path):
    state = states.facebook(bottleneck.weights)
    half = {name: value.astype(np.float16) for name, value in state.items()}
    weights = read_pretrained(save(tmp_path / "model.safetensors", half))
    assert {value.dtype for value in weights.params.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(weights.params["class_head/bias"], half["class_embed.bias"].astype(np.float32))


def test_a_mask_head_that_is_not_whole_is_refused(bottleneck, tmp_path, rng):
    state = LAYOUTS["panoptic"](bottleneck.weights)
    mask_head = {"bbox_attention.q_linear.weight": rng.normal(size=(16, 16)).astype(np.float32)}
    with pytest.raises(WeightsError, match=r"(?s)missing.*bbox_attention\.k_linear\.weight.*mask_head\.lay1\.weight"):
        read_pretrained(save(tmp_path / "model.safetensors", state | mask_head))


@pytest.mark.parametrize("layout", ["mmdetection", "detectron2"])
def test_a_model_for_blue_green_red_takes_rgb_and_predicts_the_same(bottleneck, tmp_path, monkeypatch, layout):
    """The reference is the model for RGB. With reversed channels of the first convolution it takes BGR."""
    state = dict(LAYOUTS[layout](bottleneck.weights))
    stem = {"mmdetection": "backbone.conv1.weight", "detectron2": "detr.backbone.0.backbone.stem.conv1.weight"}[layout]
    state[stem] = state[stem][:, ::-1]
    mean, std = np.float32([103.53, 116.28, 123.675]), np.float32([57.375, 57.12, 58.395])
    if layout == "detectron2":
        state |= {"pixel_mean": mean, "pixel_std": std}
    else:
        config = {"model": {"data_preprocessor": {"mean": mean.tolist(), "std": std.tolist(), "bgr_to_rgb": False}}}
        read = pretrained.read_file

        def with_config(path):
            return dataclasses.replace(read(path), extras={"meta": {"cfg": config}})

        monkeypatch.setattr(pretrained, "read_file", with_config)
    path = save(tmp_path / "model.safetensors", state)
    weights = read_pretrained(path)
    assert any("blue, green, red" in note for note in weights.notes)
    np.testing.assert_allclose(weights.config.pixel_mean, [0.485, 0.456, 0.406], atol=1e-6)
    np.testing.assert_allclose(weights.config.pixel_std, [0.229, 0.224, 0.225], atol=1e-6)
    model = load_pretrained(path, mask_padding=False)
    _, sizes, expected = bottleneck.case("batch")
    images = np.zeros((2, *BUCKET, 3), np.uint8)
    for place, image in zip(images, bottleneck.images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    pixels = model.normalize(jnp.asarray(images), jnp.asarray(sizes))
    assert_outputs(model, pixels, sizes, expected, coco_ids=True)
