"""Predictions, proposals, denoising queries, losses and gradients against mmdetection 3.3's DINO.

Both have the same random weights, and in training the same noise. mmdetection lifts references to 1e-5 where it
predicts a box, and to 1e-3 where it corrects one. The original lifts them to 1e-3 in both cases, and so does
mmdetection here.
"""

import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from detr_jax.config import LossConfig, dino_terms, focal_costs
from detr_jax.data.coco_classes import COCO_CLASSES
from detr_jax.losses import set_loss
from detr_jax.models import dino
from detr_jax.models.denoising import Noise
from detr_jax.structures import Targets
from detr_jax.testing import random_boxes
from detr_jax.weights import load_pretrained, read_pretrained
from detr_jax.weights.trees import by_path
from tests.parity.mmdetection_models import mmdetection_registry
from tests.parity.torch_models import padded, randomise

SIZES = ((187, 300), (224, 203))  # (height, width); neither is a multiple of 64
BUCKET = (256, 320)
QUERIES, WIDTH, CLASSES = 12, 256, 80  # mmdetection embeds boxes in 256 channels only
OBJECTS, PAIRS = 3, 10  # three groups of denoising queries, and two slots that stay unused
COCO_IDS = np.array(sorted(COCO_CLASSES))


def dino_config():
    attention = {"embed_dims": WIDTH, "num_levels": 4, "dropout": 0.0}
    feed_forward = {"embed_dims": WIDTH, "feedforward_channels": 48, "ffn_drop": 0.0}
    costs = [
        {"type": "FocalLossCost", "weight": 2.0},
        {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
        {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
    ]
    return {
        "type": "DINO",
        "num_queries": QUERIES,
        "with_box_refine": True,
        "as_two_stage": True,
        "backbone": {
            "type": "ResNet",
            "depth": 50,
            "base_channels": 8,
            "out_indices": (1, 2, 3),
            "norm_cfg": {"type": "BN", "requires_grad": False},
            "norm_eval": True,
            "style": "pytorch",
        },
        "neck": {
            "type": "ChannelMapper",
            "in_channels": [64, 128, 256],
            "kernel_size": 1,
            "out_channels": WIDTH,
            "act_cfg": None,
            "norm_cfg": {"type": "GN", "num_groups": 32},
            "num_outs": 4,
        },
        "encoder": {"num_layers": 2, "layer_cfg": {"self_attn_cfg": attention, "ffn_cfg": feed_forward}},
        "decoder": {
            "num_layers": 3,
            "return_intermediate": True,
            "layer_cfg": {
                "self_attn_cfg": {"embed_dims": WIDTH, "num_heads": 8, "dropout": 0.0},
                "cross_attn_cfg": attention,
                "ffn_cfg": feed_forward,
            },
            "post_norm_cfg": None,
        },
        "positional_encoding": {"num_feats": WIDTH // 2, "normalize": True, "offset": 0.0, "temperature": 20},
        "bbox_head": {
            "type": "DINOHead",
            "num_classes": CLASSES,
            "sync_cls_avg_factor": True,
            "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 5.0},
            "loss_iou": {"type": "GIoULoss", "loss_weight": 2.0},
        },
        "dn_cfg": {
            "label_noise_scale": 0.5,
            "box_noise_scale": 1.0,
            "group_cfg": {"dynamic": True, "num_groups": None, "num_dn_queries": PAIRS},
        },
        "train_cfg": {"assigner": {"type": "HungarianAssigner", "match_costs": costs}},
        "test_cfg": {"max_per_img": 300},
    }


@torch.no_grad()
def tell_apart(model):
    """Random weights under which queries, levels and tokens differ, and tokens that propose nothing come last."""
    randomise(model, model.backbone)
    for name, parameter in model.named_parameters():
        if "sampling_offsets.bias" in name:
            parameter.uniform_(-3, 3)
        elif name.endswith("gn.weight"):
            parameter.uniform_(0.5, 1.5)
        elif "level_embed" in name:
            parameter.normal_(0, 1)
    head = model.bbox_head.cls_branches[-1]
    z = model.memory_trans_norm(model.memory_trans_fc(torch.zeros(WIDTH)))
    head.weight -= (head.weight @ z + 3)[:, None] / (z @ z) * z


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.fixture(scope="module")
def pair(tmp_path_factory, patch):
    """mmdetection's model, and a file with its weights."""
    registry = mmdetection_registry()
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    torch.manual_seed(seed)
    model = registry.build(dino_config()).eval()
    tell_apart(model)
    from mmdet.models.dense_heads import deformable_detr_head

    patch.setattr(deformable_detr_head, "inverse_sigmoid", partial(deformable_detr_head.inverse_sigmoid, eps=1e-3))
    file = tmp_path_factory.mktemp("dino") / "dino.pth"
    torch.save({"meta": {"epoch": 1}, "state_dict": model.state_dict()}, file)
    return model, file


def samples(targets=None):
    """mmdetection's description of the images."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    found = []
    for i, size in enumerate(SIZES):
        sample = DetDataSample(metainfo={"batch_input_shape": BUCKET, "img_shape": size})
        if targets is not None:
            boxes, labels = (torch.from_numpy(x[i]) for x in targets)
            corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
            corners = corners * torch.tensor([size[1], size[0]] * 2)
            sample.gt_instances = InstanceData(bboxes=corners, labels=labels)
        found.append(sample)
    return found


def random_images(rng):
    images = padded([rng.normal(size=(*size, 3)) for size in SIZES], BUCKET)
    return images, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def differences(found, expected):
    errors = {
        name: float(np.abs(np.asarray(found[name]) - np.asarray(value)).max()) for name, value in expected.items()
    }
    print({name: f"{error:.1e} of {np.abs(np.asarray(expected[name])).max():.2f}" for name, error in errors.items()})
    return errors


def test_a_padded_batch_is_answered_as_mmdetection_does(pair, rng):
    model, file = pair
    assert read_pretrained(file).kind == "mmdetection"
    images, pixels = random_images(rng)
    model.eval()
    with torch.no_grad():
        logits, boxes = model.bbox_head(**model.forward_transformer(model.extract_feat(pixels), samples()))
    expected = {"logits": logits.numpy(), "boxes": boxes.numpy()}
    assert expected["logits"].std(axis=2).mean() > 0.02
    assert expected["boxes"].std(axis=2).mean() > 0.02
    ours = load_pretrained(file, mask_padding=False)
    outputs = jax.jit(lambda images: ours(images, jnp.asarray(SIZES)))(jnp.asarray(images))
    found = {"logits": outputs.logits[..., COCO_IDS], "boxes": outputs.boxes}
    assert max(differences(found, expected).values()) < 1e-4


@pytest.fixture
def recorded(monkeypatch):
    """The random numbers that mmdetection draws, in the order of the draws."""
    draws = []

    def recording(draw):
        def call(*args, **kwargs):
            draws.append(draw(*args, **kwargs))
            return draws[-1].clone()

        return call

    for name in ("rand_like", "randint_like"):
        monkeypatch.setattr(torch, name, recording(getattr(torch, name)))
    return draws


def slot_noise(draws, slots):
    """The draws of mmdetection as noise of our slots.

    It draws for all targets of the batch, once per group and polarity.
    """
    choice, labels, signs, sizes = (draw.numpy() for draw in draws)
    is_relabelled = choice < 0.25
    new = np.zeros(len(choice), np.int32)
    new[is_relabelled] = COCO_IDS[labels]

    def placed(flat):
        by_block = flat.reshape(-1, len(SIZES), OBJECTS, *flat.shape[1:]).swapaxes(0, 1)
        by_slot = by_block.reshape(len(SIZES), -1, *flat.shape[1:])
        return jnp.pad(by_slot, [(0, 0), (0, slots - by_slot.shape[1]), *[(0, 0)] * (flat.ndim - 1)])

    return Noise(placed(is_relabelled), placed(new), placed(sizes * (2 * signs - 1)))


class TrainingStep(NamedTuple):
    """What mmdetection computes in a training step."""

    losses: dict[str, torch.Tensor]
    """With their weights."""
    outputs: dict[str, np.ndarray]
    """Logits and boxes of object queries, denoising queries and proposals."""


def mmdetection_step(model, pixels, targets, monkeypatch):
    """A training step without the update. The gradients stay with the model's parameters."""
    kept = {}
    original = model.bbox_head.loss

    def loss(**inputs):
        kept.update(inputs)
        return original(**inputs)

    with monkeypatch.context() as patch:
        patch.setattr(model.bbox_head, "loss", loss)
        model.train()
        model.zero_grad()
        losses = model.loss(pixels, samples(targets))
        sum(losses.values()).backward()
    with torch.no_grad():
        logits, boxes = model.bbox_head(kept["hidden_states"], kept["references"])
    number = kept["dn_meta"]["num_denoising_queries"]
    outputs = {
        "logits": logits[:, :, number:],
        "boxes": boxes[:, :, number:],
        "dn_logits": logits[:, :, :number],
        "dn_boxes": boxes[:, :, :number],
        "proposed_logits": kept["enc_outputs_class"],
        "proposed_boxes": kept["enc_outputs_coord"],
    }
    return TrainingStep(losses, {name: value.detach().numpy() for name, value in outputs.items()})


def our_outputs(outputs, denoising_queries):
    """The same of our model."""
    of_slots = outputs.denoising.predictions
    return {
        "logits": outputs.logits[..., COCO_IDS],
        "boxes": outputs.boxes,
        "dn_logits": of_slots.logits[:, :, :denoising_queries, COCO_IDS],
        "dn_boxes": of_slots.boxes[:, :, :denoising_queries],
        "proposed_logits": outputs.proposals.logits[0][..., COCO_IDS],
        "proposed_boxes": outputs.proposals.boxes[0],
    }


def our_names(name):
    """The name of a loss of mmdetection among our terms, and its weight."""
    layer, _, rest = name.rpartition(".")
    part, _, term = rest.partition("loss_")
    ours, weight = {"cls": ("ce", 1.0), "bbox": ("bbox", 5.0), "iou": ("giou", 2.0)}[term]
    suffix = {"": "", "enc_": "_enc", "dn_": "_dn"}[part] + (f"_{layer[1:]}" if layer else "")
    return f"loss_{ours}{suffix}", weight


def gradients_by_path(model, folder):
    """mmdetection's gradients by our path, read as if they were weights.

    Parameters that mmdetection does not train or does not have are left out, and so are biases of keys, which a softmax
    ignores.
    """
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    state = model.state_dict()
    for name, parameter in model.named_parameters():
        state[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, folder / "gradients.pth")
    params = read_pretrained(folder / "gradients.pth").params
    frozen = [name for name in state if name not in with_gradient]
    assert all("backbone" in name for name in frozen)
    left_out = re.compile(r"backbone/.*norm|pyramid/\w+/\d+/bias|key/bias")
    return {path: value for path, value in params.items() if not left_out.search(path)}


@pytest.fixture
def smooth(monkeypatch):
    """Softplus for every ReLU. A ReLU whose input is within rounding of 0 has one gradient here and another there."""
    monkeypatch.setattr(jax.nn, "relu", jax.nn.softplus)
    monkeypatch.setattr(torch.nn.functional, "relu", lambda x, inplace=False: torch.nn.functional.softplus(x))
    monkeypatch.setattr(torch.nn.ReLU, "forward", lambda self, x: torch.nn.functional.softplus(x))


@pytest.mark.usefixtures("smooth")
def test_a_training_step_with_the_same_noise_is_mmdetections(pair, rng, recorded, monkeypatch, tmp_path):
    """Outputs within 1e-4, losses within 1e-4 relative, and the gradient of each parameter within 1e-3."""
    model, file = pair
    images, pixels = random_images(rng)
    boxes, labels = random_boxes(rng, 2, OBJECTS), rng.integers(0, CLASSES, (2, OBJECTS))
    expected = mmdetection_step(model, pixels, (boxes, labels), monkeypatch)
    assert len(recorded) == 4

    ours: Any = load_pretrained(file, mask_padding=False)
    ours.denoising_queries = 2 * PAIRS
    graph, state = nnx.split(ours)
    targets = Targets(jnp.asarray(boxes), jnp.asarray(COCO_IDS[labels], jnp.int32), jnp.full(2, OBJECTS, jnp.int32))
    config = LossConfig(terms=dino_terms(), costs=focal_costs())
    monkeypatch.setattr(dino, "draw_noise", lambda *_, **__: slot_noise(recorded, 2 * PAIRS))

    @jax.jit
    def run(state):
        def loss(state):
            outputs = nnx.merge(graph, state)(images, jnp.asarray(SIZES), targets=targets, rngs=nnx.Rngs(dropout=0))
            value, terms = set_loss(outputs, targets, config)
            return value, (outputs, terms)

        return jax.grad(loss, has_aux=True)(state)

    gradient, (outputs, terms) = run(nnx.as_pure(state))
    found = our_outputs(outputs, expected.outputs["dn_boxes"].shape[2])
    assert max(differences(found, expected.outputs).values()) < 1e-4

    assert {"dn_loss_cls", "enc_loss_iou", "d1.dn_loss_bbox"} <= expected.losses.keys()
    for name, value in expected.losses.items():
        our_name, weight = our_names(name)
        assert float(terms[our_name]) * weight == pytest.approx(value.item(), rel=1e-4), name

    ours_by_path = by_path(gradient)
    errors = {}
    for path, value in gradients_by_path(model, tmp_path).items():
        of_ours = np.asarray(ours_by_path[path])
        if path.startswith("class_head/"):
            value, of_ours = value[..., COCO_IDS], of_ours[..., COCO_IDS]
        errors[path] = float(np.linalg.norm(of_ours - value) / np.linalg.norm(value))
    worst = max(errors, key=lambda path: errors[path])
    print(len(errors), "gradients; the worst is", worst, errors[worst], "median", np.median(list(errors.values())))
    assert errors[worst] < 1e-3, {path: error for path, error in errors.items() if error > 1e-3}
