"""Predictions against mmdetection 3.3's DETR with the same random weights.

It needs what `mmdetection.txt` beside this file lists.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from detr_jax.weights import load_pretrained, read_pretrained
from tests.outputs import model_outputs
from tests.parity.mmdetection_models import mmdetection_registry
from tests.parity.torch_models import randomise
from tests.weights.framework_states import coco_outputs

SIZES = ((187, 300), (224, 203))
BUCKET = (224, 320)


@pytest.fixture(scope="module")
def registry():
    """mmdetection's registry of models."""
    return mmdetection_registry()


def detr_config(depth, **backbone):
    width, heads, ffn = 32, 8, 48
    attention = {"embed_dims": width, "num_heads": heads, "dropout": 0.0, "batch_first": True}
    feed_forward = {"embed_dims": width, "feedforward_channels": ffn, "num_fcs": 2, "ffn_drop": 0.0}
    feed_forward["act_cfg"] = {"type": "ReLU", "inplace": True}
    channels = 8 * 8 * (4 if depth >= 50 else 1)
    return {
        "type": "DETR",
        "num_queries": 9,
        "backbone": {
            "type": "ResNet",
            "depth": depth,
            "base_channels": 8,
            "out_indices": (3,),
            "norm_cfg": {"type": "BN", "requires_grad": False},
            "norm_eval": True,
            "style": "pytorch",
            **backbone,
        },
        "neck": {
            "type": "ChannelMapper",
            "in_channels": [channels],
            "kernel_size": 1,
            "out_channels": width,
            "act_cfg": None,
            "norm_cfg": None,
            "num_outs": 1,
        },
        "encoder": {"num_layers": 2, "layer_cfg": {"self_attn_cfg": attention, "ffn_cfg": feed_forward}},
        "decoder": {
            "num_layers": 3,
            "layer_cfg": {"self_attn_cfg": attention, "cross_attn_cfg": attention, "ffn_cfg": feed_forward},
            "return_intermediate": True,
        },
        "positional_encoding": {"num_feats": width // 2, "normalize": True},
        "bbox_head": {
            "type": "DETRHead",
            "num_classes": 80,
            "embed_dims": width,
            # spelled out, because the head changes its own default
            "loss_cls": {"type": "CrossEntropyLoss", "bg_cls_weight": 0.1, "class_weight": 1.0},
        },
    }


@torch.no_grad()
def mmdetection_outputs(model, pixels, sizes):
    """Last feature map, memory, logits and boxes of images [B, 3, H, W] with valid sizes [B, 2]."""
    from mmdet.structures import DetDataSample

    samples = [
        DetDataSample(metainfo={"batch_input_shape": tuple(pixels.shape[-2:]), "img_shape": tuple(size)})
        for size in sizes
    ]
    features = model.backbone(pixels)[-1].permute(0, 2, 3, 1)
    necked = model.extract_feat(pixels)
    encoder_inputs, _ = model.pre_transformer(necked, samples)
    memory = model.forward_encoder(**encoder_inputs)["memory"]
    head_inputs = model.forward_transformer(necked, samples)
    logits, boxes = model.bbox_head(**head_inputs)
    return {
        "features": features.numpy(),
        "memory": memory.numpy().reshape(*features.shape[:3], -1),
        "logits": logits[-1].numpy(),
        "boxes": boxes[-1].numpy(),
    }


@pytest.mark.parametrize("depth", [18, 50])
def test_a_padded_batch_is_answered_as_mmdetection_does(registry, tmp_path, rng, depth):
    torch.manual_seed(int(rng.integers(2**31)))
    model = registry.build(detr_config(depth)).eval()
    randomise(model, model.backbone)
    torch.save({"meta": {"epoch": 1}, "state_dict": model.state_dict()}, tmp_path / "detr.pth")
    assert read_pretrained(tmp_path / "detr.pth").kind == "mmdetection"

    images = np.zeros((2, *BUCKET, 3), np.float32)
    for place, (height, width) in zip(images, SIZES, strict=True):
        place[:height, :width] = rng.normal(size=(height, width, 3))
    expected = mmdetection_outputs(model, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), SIZES)
    ours = load_pretrained(tmp_path / "detr.pth", mask_padding=False)
    found = {name: np.asarray(x) for name, x in model_outputs(ours, jnp.asarray(images), jnp.asarray(SIZES)).items()}
    found["logits"] = found["logits"][..., coco_outputs()]
    errors = {name: float(np.abs(found[name] - value).max()) for name, value in expected.items()}
    print(errors)
    assert max(errors.values()) < 1e-4, errors
