"""Checkpoints of Deformable DETR: names, tied tensors, metadata and classes of every framework."""

import argparse
import dataclasses
import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx
from safetensors.numpy import save_file

from detr_jax.checkpoints import load_config
from detr_jax.cli import main
from detr_jax.config import (
    L1,
    Config,
    DataConfig,
    DeformableDETRConfig,
    FocalCost,
    GIoU,
    GIoUCost,
    L1Cost,
    LossConfig,
    ModelConfig,
    SigmoidFocal,
    TrainingConfig,
)
from detr_jax.data.coco_classes import COCO_CLASSES
from detr_jax.models import DeformableDETR
from detr_jax.models.detector import abstract_model
from detr_jax.training.resolve import resolve_model
from detr_jax.weights import WeightsError, merge_pretrained, read_pretrained
from detr_jax.weights.trees import by_path
from tests.weights import deformable_states as states
from tests.weights import framework_states
from tests.weights.deformable_states import VARIANTS, random_params, small_config

FRAMEWORKS = {
    "fundamentalvision": states.original,
    "huggingface": states.huggingface,
    "huggingface5": states.huggingface5,
    "mmdetection": states.mmdetection,
}
CONV_BIAS = r"pyramid/\w+/\d+/bias"


def save(folder, state, name="model.safetensors"):
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, folder / name)
    return folder / name


def save_torch(folder, state, name="checkpoint.pth", **extras):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    torch.save({"model": tensors, **extras}, folder / name)
    return folder / name


def report(path, **said):
    with pytest.raises(WeightsError) as caught:
        read_pretrained(path, **said)
    return str(caught.value)


def assert_params(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.fixture
def make(rng):
    """A small configuration of a variant, and random params for it."""

    def make(variant, **fields):
        config = small_config(variant, **fields)
        return config, random_params(config, rng)

    return make


@pytest.mark.parametrize(("variant", "names"), [("single", 549), ("multi", 561), ("refined", 597), ("two-stage", 630)])
def test_the_names_here_are_as_many_as_in_the_original_s_own_models(variant, names):
    """The numbers were counted in models that the original built."""
    config = DeformableDETRConfig(**VARIANTS[variant])
    _, abstract = abstract_model(config)
    zero = np.zeros((), np.float32)
    params = {path: np.broadcast_to(zero, leaf.shape) for path, leaf in by_path(abstract).items()}
    assert len(states.original(params, config)) == names


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_param_of_every_variant_is_read(framework, variant, make, tmp_path):
    config, params = make(variant)
    weights = read_pretrained(save(tmp_path, FRAMEWORKS[framework](params, config)))
    if framework == "mmdetection":
        params = {path: np.zeros_like(x) if re.fullmatch(CONV_BIAS, path) else x for path, x in params.items()}
    assert weights.kind == framework.rstrip("5")
    if config.two_stage:  # no tensor shows the number of queries
        assert any("300 are assumed" in note for note in weights.notes)
        config = dataclasses.replace(config, num_queries=300)
    assert weights.config == config
    assert_params(weights.params, params)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_transformers_5_leaves_out_is_completed(variant, make, tmp_path):
    config, params = make(variant)
    if variant == "refined":
        for path in params:
            if path.startswith("class_head/"):
                params[path] = params[re.sub(r"/\d+/", "/0/", path)]
    state = states.huggingface(params, config)
    written = states.saved_by_transformers5(state, config)
    assert len(written) < len(state)
    assert_params(read_pretrained(save(tmp_path, written)).params, params)


@pytest.mark.parametrize("prefix", ["module.", "student.", "module.student."])
def test_prefixes_of_wrappers_are_removed(prefix, make, tmp_path):
    config, params = make("refined")
    state = {prefix + name: value for name, value in states.original(params, config).items()}
    assert_params(read_pretrained(save(tmp_path, state)).params, params)


@pytest.mark.parametrize(
    ("framework", "variant", "changed", "first"),
    [
        ("fundamentalvision", "multi", "class_embed.2.bias", "class_embed.0.bias"),
        (
            "fundamentalvision",
            "refined",
            "transformer.decoder.bbox_embed.1.layers.2.weight",
            "bbox_embed.1.layers.2.weight",
        ),
        ("fundamentalvision", "two-stage", "transformer.decoder.class_embed.3.weight", "class_embed.3.weight"),
        ("huggingface", "single", "bbox_embed.1.layers.0.bias", "bbox_embed.0.layers.0.bias"),
        ("huggingface", "two-stage", "model.decoder.bbox_embed.0.layers.0.weight", "bbox_embed.0.layers.0.weight"),
    ],
)
def test_copies_with_other_values_are_refused(framework, variant, changed, first, make, tmp_path):
    config, params = make(variant)
    state = FRAMEWORKS[framework](params, config)
    state[changed] = state[changed] + 1
    said = report(save(tmp_path, state))
    names = {changed, first}
    pattern = r"1 of the wrong shape, type or values:\n    (\S+) has other values than (\S+), and both must be"
    assert set(re.search(pattern, said).groups()) == names, said


@pytest.mark.parametrize(
    ("framework", "variant", "missing"),
    [
        ("fundamentalvision", "multi", "transformer.level_embed"),
        ("fundamentalvision", "multi", "query_embed.weight"),
        ("fundamentalvision", "refined", "class_embed.1.bias"),
        ("fundamentalvision", "two-stage", "transformer.pos_trans_norm.bias"),
        ("huggingface", "refined", "class_embed.2.bias"),
        ("huggingface", "multi", "model.decoder.layers.1.encoder_attn.value_proj.bias"),
        ("huggingface", "multi", "model.input_proj.3.0.bias"),
        ("mmdetection", "two-stage", "memory_trans_fc.weight"),
        ("mmdetection", "refined", "bbox_head.reg_branches.1.4.bias"),
    ],
)
def test_a_missing_tensor_is_named(framework, variant, missing, make, tmp_path):
    config, params = make(variant)
    state = FRAMEWORKS[framework](params, config)
    del state[missing]
    assert f"1 missing:\n    {missing}" in report(save(tmp_path, state))


def test_a_tensor_of_the_wrong_shape_is_named_once(make, tmp_path):
    config, params = make("multi")
    state = states.mmdetection(params, config)
    state["neck.extra_convs.0.conv.weight"] = np.zeros((32, 9, 3, 3), np.float32)
    said = report(save(tmp_path, state))
    assert said.endswith("neck.extra_convs.0.conv.weight has [32, 9, 3, 3] and must have [32, 128, 3, 3]"), said


def test_biases_of_the_pyramid_are_zero_only_if_none_is_stored(make, tmp_path):
    config, params = make("multi")
    state = states.mmdetection(params, config)
    for level in range(3):
        state[f"neck.convs.{level}.conv.bias"] = params[f"pyramid/projections/{level}/bias"]
    assert "1 missing:\n    neck.extra_convs.0.conv.bias" in report(save(tmp_path, state))
    state["neck.extra_convs.0.conv.bias"] = params["pyramid/extra/0/bias"]
    assert_params(read_pretrained(save(tmp_path, state)).params, params)


def test_mmdetection_s_configuration_says_whether_equal_heads_are_one(make, tmp_path):
    config, params = make("multi")
    state = states.mmdetection(params, config)
    text = "model = dict(type='DeformableDETR', with_box_refine={}, num_queries=7)"
    for refined in (False, True):
        meta = {"cfg": text.format(refined)}
        path = save_torch(tmp_path, state, meta=meta)
        assert read_pretrained(path).config.refine_boxes == refined
    state["bbox_head.reg_branches.1.4.bias"] = state["bbox_head.reg_branches.1.4.bias"] + 1
    assert "reg_branches.1.4.bias has other values than" in report(
        save_torch(tmp_path, state, meta={"cfg": text.format(False)})
    )


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("type='DINO'", "model.type='DINO'"),
        ("positional_encoding=dict(num_feats=16, normalize=True, offset=0.0)", "offset=0.0"),
        ("bbox_head=dict(loss_cls=dict(use_sigmoid=False))", "use_sigmoid=False"),
        ("as_two_stage=True", "as_two_stage=True, and the tensors of checkpoint.pth show False"),
        ("decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_points=4)))", "with 4 points each"),
    ],
)
def test_settings_of_mmdetection_that_are_not_modelled_are_refused(model, said, make, tmp_path):
    config, params = make("multi")
    path = save_torch(tmp_path, states.mmdetection(params, config), meta={"cfg": f"model = dict({model})"})
    assert said in report(path)


def test_the_arguments_of_the_original_are_read(make, tmp_path):
    config, params = make("two-stage", num_heads=4, num_points=3, num_queries=40)
    args = argparse.Namespace(
        nheads=4, dec_n_points=3, enc_n_points=3, num_queries=40, with_box_refine=True, two_stage=True, dilation=False
    )
    state = {f"module.{name}": value for name, value in states.original(params, config).items()}
    weights = read_pretrained(save_torch(tmp_path, state, args=args))
    assert weights.config == config
    assert not any("assumed" in note and "queries" in note for note in weights.notes)
    args.two_stage = False
    said = report(save_torch(tmp_path, state, args=args))
    assert "two_stage=False, and the tensors of checkpoint.pth show True" in said


def test_heads_that_do_not_fit_the_points_are_refused(make, tmp_path):
    config, params = make("multi", num_points=1)
    path = save(tmp_path, states.original(params, config))
    assert "32 points per query, which does not fit 64 pairs of head and level: give num_heads" in report(
        path, num_heads=16
    )
    assert read_pretrained(path, num_heads=4).config.num_points == 2


def test_a_released_dc5_file_is_known_by_its_name(make, tmp_path):
    config, params = make("single")
    state = states.original(params, config)
    weights = read_pretrained(save_torch(tmp_path, state, "r50_deformable_detr_single_scale_dc5-checkpoint.pth"))
    assert weights.config.backbone.dilation
    assert weights.config.stride == 16
    assert not read_pretrained(save_torch(tmp_path, state)).config.backbone.dilation
    assert read_pretrained(save_torch(tmp_path, state), dilation=True).config.backbone.dilation


def test_config_json_of_hugging_face_is_read(make, tmp_path):
    config, params = make("two-stage", num_heads=4, num_points=3, num_queries=40)
    save(tmp_path, states.huggingface(params, config))
    content = {
        "model_type": "deformable_detr",
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_n_points": 3,
        "decoder_n_points": 3,
        "two_stage": True,
        "with_box_refine": True,
        "two_stage_num_proposals": 40,
        "id2label": {"0": "cat", "1": "dog"},
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    weights = read_pretrained(tmp_path)
    assert weights.config == config
    assert weights.class_names == {0: "cat", 1: "dog"}
    for wrong, said in (
        ({"model_type": "detr"}, "model_type='detr', and only 'deformable_detr'"),
        ({"position_embedding_type": "learned"}, "only 'sine'"),
        ({"two_stage": False}, "two_stage=False, and the tensors"),
        ({"with_box_refine": False}, "with_box_refine=False, and the tensors"),
        ({"decoder_n_points": 4}, "3 points in the encoder and 4 in the decoder"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content | wrong))
        assert said in report(tmp_path)


def test_the_original_s_labels_are_coco_s_raw_ids(make, tmp_path):
    config, params = make("multi", num_classes=91)
    assert read_pretrained(save(tmp_path, states.original(params, config))).class_names == dict(COCO_CLASSES)
    config, params = make("multi", num_classes=90)
    assert not read_pretrained(save(tmp_path, states.original(params, config))).class_names


@pytest.mark.parametrize("variant", ["multi", "refined", "two-stage"])
def test_mmdetection_s_80_classes_become_raw_ids(variant, make, tmp_path):
    config, params = make(variant, num_classes=80)
    weights = read_pretrained(save(tmp_path, states.mmdetection(params, config)))
    assert weights.config.num_classes == 91
    assert weights.class_names == dict(COCO_CLASSES)
    heads = {"multi": 1, "refined": 3, "two-stage": 4}[variant]
    for head in range(heads):
        kernel, bias = (weights.params[f"class_head/{head}/{leaf}"] for leaf in ("kernel", "bias"))
        stored_kernel, stored_bias = (params[f"class_head/{head}/{leaf}"] for leaf in ("kernel", "bias"))
        places = dict(enumerate(COCO_CLASSES))
        if variant == "two-stage" and head == 3:
            places[0] = 0  # "an object", by which the proposals are chosen
        assert len(places) == 80
        for label in range(91):
            stored = next((i for i, place in places.items() if place == label), None)
            column = np.zeros(32) if stored is None else stored_kernel[:, stored]
            np.testing.assert_array_equal(kernel[:, label], column, err_msg=f"{head} {label}")
            assert bias[label] == (-10_000 if stored is None else stored_bias[stored])


def test_a_model_of_mmdetection_for_blue_green_red_takes_rgb(make, tmp_path):
    config, params = make("multi")
    cfg = "model = dict(type='DeformableDETR', data_preprocessor=dict(mean=[1, 2, 3], std=[1, 1, 2], bgr_to_rgb=False))"
    weights = read_pretrained(save_torch(tmp_path, states.mmdetection(params, config), meta={"cfg": cfg}))
    stem = "backbone/stem/conv/conv/kernel"
    np.testing.assert_array_equal(weights.params[stem], params[stem][:, :, ::-1])
    np.testing.assert_allclose(np.multiply(weights.pixel_mean, 255), [3, 2, 1], rtol=1e-5)


def test_a_detr_file_and_a_deformable_detr_file_are_told_apart(bottleneck, make, tmp_path):
    config, params = make("multi")
    for detr, deformable in (
        (framework_states.facebook, states.original),
        (framework_states.transformers4, states.huggingface),
        (framework_states.mmdetection, states.mmdetection),
    ):
        assert not isinstance(read_pretrained(save(tmp_path, detr(bottleneck.weights))).config, DeformableDETRConfig)
        found = read_pretrained(save(tmp_path, deformable(params, config))).config
        assert isinstance(found, DeformableDETRConfig)


@pytest.mark.parametrize(
    ("framework", "added", "said"),
    [
        ("fundamentalvision", "label_enc.weight", "DINO or DN-DETR"),
        ("fundamentalvision", "transformer.tgt_embed.weight", "DINO or DAB-Deformable DETR"),
        ("fundamentalvision", "refpoint_embed.weight", "DAB-DETR or a model built on it"),
        (
            "fundamentalvision",
            "transformer.decoder.ref_point_head.layers.0.weight",
            "Conditional DETR, DAB-DETR or DINO",
        ),
        ("mmdetection", "dn_query_generator.label_embedding.weight", "DINO or DN-DETR"),
        ("huggingface", "model.denoising_class_embed.weight", "RT-DETR"),
    ],
)
def test_relatives_are_refused_by_their_name(framework, added, said, make, tmp_path):
    config, params = make("two-stage")
    state = {**FRAMEWORKS[framework](params, config), added: np.zeros((3, 3), np.float32)}
    assert f"is a checkpoint of {said} (it has {added}), and no layout for it is known" in report(save(tmp_path, state))


@pytest.mark.parametrize("variant", ["multi", "refined", "two-stage"])
def test_a_training_with_other_classes_and_queries_keeps_all_other_params(variant, make, tmp_path, rngs):
    config, params = make(variant)
    weights = read_pretrained(save(tmp_path, states.original(params, config)))
    config = dataclasses.replace(
        weights.config, num_classes=3, num_queries=11, max_detections_per_image=20, dropout=0.0, mask_padding=False
    )
    tree = nnx.as_pure(nnx.state(DeformableDETR(config, rngs=rngs)))
    merged, outcomes = merge_pretrained(tree, weights, config)
    restarted = {o.path for o in outcomes if o.what == "re-initialised"}
    wanted = {path for path in params if re.match(r"class_head/|queries/(position|content)", path)}
    kept = {path for path in wanted if config.two_stage and path.startswith(f"class_head/{config.decoder_layers}/")}
    assert restarted == wanted - kept
    assert {o.path for o in outcomes if o.what == "loaded"} == params.keys() - restarted
    before = by_path(tree)
    for path, value in by_path(merged).items():
        if path in kept:  # of the encoder's head, the class that means "an object"
            np.testing.assert_array_equal(value[..., 0], params[path][..., 0], err_msg=path)
            continue
        np.testing.assert_array_equal(value, before[path] if path in restarted else params[path], err_msg=path)


def test_the_command_writes_a_checkpoint_that_is_read_again(make, tmp_path):
    config, params = make("refined")
    path = save(tmp_path, states.huggingface(params, config))
    result = CliRunner().invoke(main, ["import-weights", str(path), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert f"of a huggingface checkpoint, 6 classes, written to {tmp_path / 'out'}" in result.output
    assert load_config(tmp_path / "out").model == config
    again = read_pretrained(tmp_path / "out")
    assert again.config == config
    assert_params(again.params, params)


def test_a_training_follows_the_checkpoint(make, tmp_path):
    config, params = make("two-stage")
    path = save(tmp_path, states.mmdetection(params, config))
    loss = LossConfig(
        terms={"ce": SigmoidFocal(), "bbox": L1(), "giou": GIoU()},
        costs={"class": FocalCost(), "bbox": L1Cost(), "giou": GIoUCost()},
    )
    training = TrainingConfig(init_from=str(path), follow_checkpoint=True)
    model = ModelConfig(num_classes=2, num_queries=0, dropout=0.2)
    given = Config(model=model, data=DataConfig(root=str(tmp_path)), loss=loss, training=training)
    resolved, weights = resolve_model(given, None)
    assert weights.kind == "mmdetection"
    assert resolved.model == dataclasses.replace(config, num_classes=2, num_queries=300, dropout=0.2)
