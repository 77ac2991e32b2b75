"""Files next to the tensors that change predictions are read as each framework reads them, or refused."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from detr_jax.config import BackboneConfig, Config, DataConfig, ModelConfig, TrainingConfig, check
from detr_jax.training.resolve import resolve_model
from detr_jax.weights import detectron2, facebook, huggingface, mmdetection, torchvision
from detr_jax.weights.files import TensorFile, WeightsError
from detr_jax.weights.pretrained import ImportedWeights, read_pretrained

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def hub(tmp_path):
    """`Metadata` of a folder with these JSON files and no tensors."""

    def read(processor=None, config=None, name="preprocessor_config.json"):
        if processor is not None:
            (tmp_path / name).write_text(json.dumps(processor))
        return huggingface.read_metadata(TensorFile(tmp_path / "model.safetensors", {}, config or {}))

    return read


@pytest.mark.parametrize(
    ("processor", "sizes"),
    [
        ({}, (800, 1333, "transformers")),
        ({"size": {"shortest_edge": 480, "longest_edge": 640}}, (480, 640, "transformers")),
        ({"size": 600, "max_size": 1000}, (600, 1000, "transformers")),
        ({"size": 600}, (600, 1333, "transformers")),
        ({"size": {"max_height": 480, "max_width": 480}}, (480, 480, "down")),
        ({"do_resize": False, "size": {"height": 3, "width": 4}}, (0, 1333, "transformers")),
        ({"image_processor_type": "DetrImageProcessorFast", "resample": None}, (800, 1333, "transformers")),
        ({"feature_extractor_type": "DetrFeatureExtractor", "resample": 2}, (800, 1333, "transformers")),
    ],
)
def test_image_sizes_of_every_version_of_transformers(hub, processor, sizes):
    found = hub(processor)
    assert found.faults == []
    assert (found.short_side, found.max_long_side, found.rounding) == sizes


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        ({"size": {"height": 480, "width": 640}}, "to 480 x 640 pixels .* regardless of its aspect"),
        ({"size": [480, 640]}, r"has size=\[480, 640\]"),
        ({"size": {"max_height": 480, "max_width": 640}}, "max_width that are equal"),
        ({"size": {"shortest_edge": 800}}, "must have shortest_edge and longest_edge"),
        ({"size": {"shortest_edge": -1, "longest_edge": 800}}, "has size="),
        ({"size": True}, "has size="),
        ({"resample": 3}, "resample=3"),
        ({"image_processor_type": "YolosImageProcessor"}, "is for YolosImageProcessor"),
        ({"rescale_factor": 0}, "rescale_factor=0"),
        ({"rescale_factor": "1/255"}, "rescale_factor='1/255'"),
        ({"image_mean": [0.5, 0.5]}, r"mean \[0\.5, 0\.5\]"),
        ({"image_std": [0.5, 0, 0.5]}, "the deviations above 0"),
        ({"image_std": "imagenet"}, "deviation 'imagenet'"),
        ({"pad_size": {"height": 64}}, "pad_size="),
    ],
)
def test_unsupported_image_preparation_is_refused(hub, processor, said):
    (fault,) = hub(processor).faults
    assert re.search(said, fault), fault


@pytest.mark.parametrize("seed", range(3))
def test_rescaling_and_normalisation_follow_their_definition(hub, rng, seed):
    processor = {
        "do_rescale": bool(rng.random() < 0.6),
        "rescale_factor": float(rng.uniform(1e-3, 1e-2)),
        "do_normalize": bool(rng.random() < 0.8),
        "image_mean": rng.uniform(0, 1, 3).tolist(),
        "image_std": rng.uniform(0.1, 1, 3).tolist(),
    }
    found = hub(processor)
    levels = rng.integers(0, 256, (5, 3)).astype(np.float64)
    expected = levels * processor["rescale_factor"] if processor["do_rescale"] else levels
    if processor["do_normalize"]:
        expected = (expected - processor["image_mean"]) / processor["image_std"]
    np.testing.assert_allclose((levels / 255 - found.pixel_mean) / found.pixel_std, expected, rtol=1e-6, atol=1e-6)


def test_one_number_counts_for_all_channels_and_rounded_imagenet_becomes_exact(hub):
    found = hub({"image_mean": 0.5, "image_std": 0.25})
    assert (found.pixel_mean, found.pixel_std) == ((0.5,) * 3, (0.25,) * 3)
    found = hub({"rescale_factor": 0.00392156862745098, "image_mean": list(IMAGENET[0])})
    assert (found.pixel_mean, found.pixel_std) == IMAGENET


def test_without_a_processor_a_note_names_the_defaults(hub):
    assert any("no preprocessor_config.json" in note for note in hub().notes)
    inside = {"image_processor": {"size": {"shortest_edge": 96, "longest_edge": 128}}}
    assert hub(inside, name="processor_config.json").short_side == 96


def test_the_error_names_a_damaged_processor(tmp_path, hub):
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(
        WeightsError, match=r"preprocessor_config\.json cannot be read as JSON \(it must hold a JSON object"
    ):
        hub()
    (tmp_path / "preprocessor_config.json").write_bytes(b'\xef\xbb\xbf{"size": 600}')  # as editors on Windows write
    assert hub().short_side == 600


def test_placeholder_class_names_are_dropped(hub):
    assert hub(config={"id2label": {"0": "N/A", "1": "person", "2": "LABEL_2"}}).class_names == {1: "person"}
    found = hub(config={"id2label": {"0": "LABEL_0", "1": "LABEL_1"}})
    assert found.class_names == {}
    assert any("only placeholders such as 'LABEL_0'" in note for note in found.notes)
    assert hub(config={"label2id": {"cat": 0, "dog": 1}}).class_names == {0: "cat", 1: "dog"}
    assert "not whole numbers" in hub(config={"id2label": {"cat": 0}}).faults[0]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"backbone": "resnetblur50"}, "backbone='resnetblur50'"),
        ({"backbone": "wide_resnet50_2"}, "backbone='wide_resnet50_2'"),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "resnetblur50"}}, "backbone='resnetblur50'"),
        ({"encoder_attention_heads": "8", "decoder_attention_heads": "8"}, "encoder_attention_heads='8'"),
        ({"quantization_config": {"bits": 8}}, "quantization_config"),
        ({"backbone": "resnet50"}, None),
        ({"backbone": "resnet50.a1_in1k"}, None),
        ({"backbone": "microsoft/resnet-50"}, None),
        ({"backbone": "tv_resnet101"}, None),
    ],
)
def test_backbones_that_tensors_do_not_show_are_refused(hub, config, said):
    faults = hub(config=config).faults
    assert faults == [] if said is None else said in faults[0]


def test_timm_s_dilation_is_read_in_each_of_its_forms(hub):
    assert hub(config={"use_timm_backbone": True, "backbone_kwargs": {"output_stride": 16}}).dilation
    assert hub(config={"use_timm_backbone": True, "dilation": True}).dilation
    assert not hub(config={"use_timm_backbone": True, "backbone_kwargs": {"out_indices": [1]}}).dilation


def test_a_recommended_threshold_is_noted(hub):
    assert any("--threshold 0.85" in note for note in hub({"threshold": 0.85}).notes)


def original(name="checkpoint.pth", classes=92, **arguments):
    tensors = {"class_embed.bias": np.zeros(classes, np.float32)}
    metadata = {"args": SimpleNamespace(**arguments)} if arguments else {}
    return facebook.read_metadata(TensorFile(SimpleNamespace(name=name), tensors, None, metadata))


def test_arguments_of_the_original_s_training():
    found = original(nheads=4, dilation=True, backbone="resnet101", dataset_file="coco")
    assert (found.num_heads, found.dilation, found.faults) == (4, True, [])
    assert found.class_names[90] == "toothbrush"
    assert original(dataset_file="cells").class_names == {}
    assert original(dataset_file="coco_panoptic", classes=251).class_names[1] == "person"
    assert original(classes=12).class_names == {}
    assert "resnext50" in original(backbone="resnext50").faults[0]


def test_the_name_of_a_released_dc5_file_sets_dilation():
    assert original("detr-r50-dc5-f0fb7ef5.pth").dilation
    assert not original("detr-r50-e632da11.pth").dilation
    assert not original("my-dc5.pth").dilation


MMDETECTION = """
model = dict(
    backbone=dict(depth=50, style='{style}', type='ResNet'),
    bbox_head=dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False), num_classes=2, type='DETRHead'),
    data_preprocessor=dict(
        bgr_to_rgb={to_rgb}, mean=[123.675, 116.28, 103.53], pad_size_divisor=1,
        std=[58.395, 57.12, 57.375], type='DetDataPreprocessor'),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_heads=4))),
    positional_encoding=dict(normalize=True, num_feats=128),
    test_cfg=dict(max_per_img=100),
    type='DETR')
scale = (600, 400)
test_pipeline = [
    dict(backend_args=None, type='LoadImageFromFile'),
    dict(keep_ratio={keep}, scale={scale}, type='Resize'),
]
test_dataloader = dict(batch_size=1, dataset=dict(metainfo=dict(classes=('bus', 'car')), pipeline=test_pipeline))
hook = dict(type=SomeClass(1), lr=0.1**2)
"""


def trained_by_mmdetection(classes=None, **text):
    text = MMDETECTION.format(**{"style": "pytorch", "to_rgb": True, "keep": True, "scale": "scale", **text})
    meta = {"cfg": text, **({"dataset_meta": {"classes": classes}} if classes else {})}
    return mmdetection.read_metadata(TensorFile(None, {}, None, {"meta": meta}))


def test_the_configuration_text_of_mmdetection_is_read_and_not_run():
    found = trained_by_mmdetection()
    assert found.faults == []
    assert (found.short_side, found.max_long_side, found.rounding, found.num_heads) == (400, 600, "nearest", 4)
    assert (found.pixel_mean, found.pixel_std, found.bgr) == (*IMAGENET, False)
    assert found.class_names == {0: "bus", 1: "car"}
    assert trained_by_mmdetection(classes=("van", "tram")).class_names == {0: "van", 1: "tram"}
    assert trained_by_mmdetection(to_rgb=False).bgr
    assert "regardless of its aspect" in trained_by_mmdetection(keep=False).faults[0]
    assert "only one Resize" in trained_by_mmdetection(scale="0.5").faults[0]
    assert "style='caffe'" in trained_by_mmdetection(style="caffe").faults[0]


@pytest.mark.parametrize("text", [None, "", "model = dict(", "import os", b"bytes", "(" * 5000])
def test_without_a_readable_configuration_a_note_names_the_defaults_of_mmdetection(text):
    found = mmdetection.read_metadata(TensorFile(None, {}, None, {"meta": {"cfg": text}}))
    assert (found.short_side, found.pixel_mean, found.bgr, found.faults) == (800, IMAGENET[0], False, [])
    assert any("no readable configuration" in note for note in found.notes)


def test_other_means_of_mmdetection_without_a_known_channel_order_are_refused():
    for mean, refused in (([123.675, 116.28, 103.53], False), ([103.53, 116.28, 123.675], True), ([0.0] * 3, True)):
        tensors = {"data_preprocessor.mean": np.float32(mean).reshape(3, 1, 1)}
        assert bool(mmdetection.read_metadata(TensorFile(None, tensors)).faults) == refused


def wrapped(folder, tensors=None, **config):
    if config:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return detectron2.read_metadata(TensorFile(folder / "model_final.pth", tensors or {}))


def test_detectron2_s_configuration_is_read_from_its_file(tmp_path):
    found = wrapped(
        tmp_path,
        MODEL={
            "META_ARCHITECTURE": "Detr",
            "PIXEL_MEAN": [123.675, 116.280, 103.530],
            "PIXEL_STD": [58.395, 57.120, 57.375],
            "DETR": {"NHEADS": 4},
            "RESNETS": {"STRIDE_IN_1X1": False, "RES5_DILATION": 1},
        },
        INPUT={"FORMAT": "RGB", "MIN_SIZE_TEST": 640, "MAX_SIZE_TEST": 1024},
    )
    assert (found.pixel_mean, found.pixel_std, found.bgr, found.faults) == (*IMAGENET, False, [])
    assert (found.short_side, found.max_long_side, found.num_heads) == (640, 1024, 4)
    found = wrapped(tmp_path, MODEL={"RESNETS": {"STRIDE_IN_1X1": True}}, INPUT={"MIN_SIZE_TEST": 0})
    assert found.short_side == 0
    assert found.bgr, "detectron2's own default"
    np.testing.assert_allclose(found.pixel_std, [1 / 255] * 3)
    assert "STRIDE_IN_1X1=True" in found.faults[0]
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(WeightsError, match=r"config\.yaml cannot be read as YAML"):
        wrapped(tmp_path)


def test_the_channel_order_follows_from_usual_means_or_the_error_asks_for_it(tmp_path):
    def of_mean(*mean):
        return wrapped(tmp_path, {"pixel_mean": np.float32(mean).reshape(3, 1, 1)})

    assert not of_mean(123.675, 116.28, 103.53).bgr
    found = of_mean(103.53, 116.28, 123.675)
    assert found.bgr
    assert found.pixel_mean == IMAGENET[0][::-1]
    assert "INPUT.FORMAT is RGB or BGR" in of_mean(127.5, 127.5, 127.5).faults[0]


def test_timm_s_configuration_of_a_backbone(tmp_path):
    config = {"architecture": "resnet50", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    found = torchvision.read_metadata(TensorFile(tmp_path / "model.safetensors", {}, config))
    assert (found.pixel_mean, found.pixel_std, found.faults) == ((0.5,) * 3, (0.5,) * 3, [])
    config["architecture"] = "resnetaa50"
    assert "resnetaa50" in torchvision.read_metadata(TensorFile(tmp_path / "model.safetensors", {}, config)).faults[0]


def imported(config, data):
    return ImportedWeights(
        source=None, kind="huggingface", backbone=BackboneConfig(), config=config, data=data,
        pixel_mean=config.pixel_mean, pixel_std=config.pixel_std, params={},
    )  # fmt: skip


def test_training_sides_keep_their_ratio_to_the_validation_side(hub):
    data = hub({"size": {"shortest_edge": 400, "longest_edge": 600}}).data()
    assert data.train_short_sides == tuple(side // 2 for side in DataConfig().train_short_sides)
    assert (data.crop_min, data.crop_max, data.crop_short_sides) == (192, 300, (200, 250, 300))
    assert (data.val_short_side, data.max_long_side) == (400, 600)
    assert hub({"do_resize": False}).data().train_short_sides == ()
    assert hub({"size": 800}).data() == DataConfig(resize_rounding="transformers")
    check(Config(data=DataConfig(**{**hub({"size": 2}).data().__dict__, "root": "data"})))


def test_fine_tuning_follows_image_sizes_and_normalisation_unless_sizes_are_given(hub, monkeypatch, tmp_path):
    there = hub({"size": {"shortest_edge": 400, "longest_edge": 600}}).data()
    model = ModelConfig(pixel_mean=(0.5, 0.4, 0.3))
    monkeypatch.setattr("detr_jax.training.initial_weights.read_pretrained", lambda *_, **__: imported(model, there))

    def settle(follow=True, **data):
        training = TrainingConfig(init_from=str(tmp_path), follow_checkpoint=True, follow_image_sizes=follow)
        return resolve_model(Config(data=DataConfig(root="data", **data), training=training), None)[0]

    assert settle().data == DataConfig(**{**there.__dict__, "root": "data"})
    assert settle().model.pixel_mean == (0.5, 0.4, 0.3)
    assert settle(max_long_side=1000).data == DataConfig(root="data", max_long_side=1000)
    assert settle(follow=False).data == DataConfig(root="data")
    resumed, _ = resolve_model(
        Config(data=DataConfig(root="data"), training=TrainingConfig(init_from="gone", follow_checkpoint=True)),
        settle(),
    )
    assert (resumed.data, resumed.model) == (settle().data, settle().model)


@pytest.mark.parametrize("std", [(0.1, 0.0, 0.1), (0.1, -1.0, 0.1), (math.inf, 0.1, 0.1), (math.nan, 0.1, 0.1)])
def test_deviations_that_are_not_above_0_are_refused(std):
    with pytest.raises(ValueError, match=r"model\.pixel_std="):
        check(Config(model=ModelConfig(pixel_std=std), data=DataConfig(root="data")))


def test_names_for_labels_that_the_class_head_lacks_are_refused(bottleneck, tmp_path):
    save_file({name: np.ascontiguousarray(x) for name, x in bottleneck.weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "cat", "80": "dog"}}))
    with pytest.raises(WeightsError, match=r"labels \[80\], and the class head has only the labels 0 to 79"):
        read_pretrained(tmp_path)
