"""One error message reports everything that is wrong with a checkpoint."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from detr_jax.weights import WeightsError, load_pretrained, read_pretrained
from tests.weights import framework_states as states


def save(folder, state):
    path = folder / "model.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, path)
    return path


def report(path, **said):
    with pytest.raises(WeightsError) as caught:
        read_pretrained(path, **said)
    return str(caught.value)


def test_all_missing_unexpected_and_wrong_tensors_are_in_one_report(bottleneck, tmp_path):
    state = states.facebook(bottleneck.weights)
    for name in (
        "transformer.encoder.layers.1.linear1.weight",
        "backbone.0.body.layer4.1.bn2.running_var",
        "class_embed.bias",
        "transformer.decoder.layers.0.multihead_attn.in_proj_weight",
    ):
        del state[name]
    state["transformer.extra.weight"] = np.zeros((2, 3), np.float32)
    state["class_embed_of_another.bias"] = np.zeros(4, np.float32)
    state["input_proj.weight"] = np.zeros((16, 99, 1, 1), np.float32)
    state["query_embed.weight"] = np.zeros((7, 16, 1), np.float32)
    state["transformer.encoder.layers.0.self_attn.in_proj_bias"] = np.zeros(47, np.float32)
    state["transformer.decoder.norm.bias"] = np.zeros(16, np.int64)
    text = report(save(tmp_path, state)) + "\n"
    for line in (
        "model.safetensors (facebook)",
        "4 missing:",
        "    transformer.encoder.layers.1.linear1.weight\n",
        "    backbone.0.body.layer4.1.bn2.running_var\n",
        "    class_embed.bias\n",
        "    transformer.decoder.layers.0.multihead_attn.in_proj_weight\n",
        "2 unexpected:",
        "    transformer.extra.weight [2, 3]\n",
        "    class_embed_of_another.bias [4]\n",
        "4 of the wrong shape, type or values:",
        "    input_proj.weight has [16, 99, 1, 1] and must have [16, 128, 1, 1]\n",
        "    query_embed.weight has [7, 16, 1] and must have ",
        "    transformer.encoder.layers.0.self_attn.in_proj_bias has [47] and must have [48]\n",
        "    transformer.decoder.norm.bias holds int64 and must hold floating point numbers\n",
    ):
        assert line in text, (line, text)


@pytest.mark.parametrize("layout", [states.transformers4, states.transformers_with_timm, dict])
def test_missing_tensors_have_the_names_of_their_own_layout(bottleneck, tmp_path, layout):
    state = layout(bottleneck.weights)
    gone = [name for name in state if "2.0" in name and "running_mean" in name]
    gone += [name for name in state if "encoder.layers.0.self_attn.q_proj" in name]
    for name in gone:
        del state[name]
    text = report(save(tmp_path, state))
    assert f"{len(gone)} missing" in text
    on_disk = [name.replace("model.backbone.model.", "model.backbone.conv_encoder.model.") for name in gone]
    for name in on_disk:
        assert name in text, (name, text)


@pytest.mark.parametrize("shape", [(81,), (3,), (81, 1)])
def test_the_same_tensor_twice_is_unexpected(bottleneck, tmp_path, shape):
    state = states.facebook(bottleneck.weights)
    assert state["class_embed.bias"].shape == (81,)
    state["module.class_embed.bias"] = np.ones(shape, np.float32)
    text = report(save(tmp_path, state))
    assert "1 unexpected" in text
    assert f"{list(shape)}, the same tensor as class_embed.bias a second time" in text
    assert "1 of the wrong" not in text


def test_everything_in_a_config_that_is_not_modelled_is_in_one_report(bottleneck, tmp_path):
    path = save(tmp_path, states.transformers4(bottleneck.weights))
    config = {
        "activation_function": "gelu",
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 4,
        "position_embedding_type": "v3",
        "backbone_config": {"downsample_in_bottleneck": True},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = report(path)
    for part in ("'gelu'", "8 heads in the encoder and 4", "'v3'", "downsample_in_bottleneck"):
        assert part in text


def test_a_config_with_more_layers_than_the_tensors_reports_the_missing_tensors(bottleneck, tmp_path):
    path = save(tmp_path, states.transformers4(bottleneck.weights))
    (tmp_path / "config.json").write_text(json.dumps({"encoder_layers": 3, "decoder_layers": 3}))
    text = report(path)
    assert "16 missing" in text
    assert "model.encoder.layers.2.fc1.weight" in text


def test_impossible_models_are_refused(bottleneck, basic_learned, tmp_path):
    path = save(tmp_path, states.facebook(basic_learned.weights))
    assert "basic blocks" in report(path, dilation=True)
    assert "cannot be split into 7 heads" in report(path, num_heads=7)
    path = save(tmp_path, states.mmdetection(bottleneck.weights))
    assert "The DC5 model of mmdetection dilates the first block" in report(path, dilation=True)
    state = states.detectron2(bottleneck.weights)
    state["pixel_mean"] = np.float32([100, 90, 110])
    assert "pixel_mean" in report(save(tmp_path, state))
    with pytest.raises(WeightsError):
        load_pretrained(path, dilation=True)
