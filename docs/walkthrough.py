"""A walk through DETR, in the order of the paper: features, mask, positions, attention, matching, loss.

Run ``python docs/walkthrough.py [WORKDIR]`` from the repository's root. Without the workdir of a trained model, it
uses an untrained one: the shapes are the same, the values are not. Pictures are written to ``walkthrough/``.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from detr_jax.checkpoints import load_model
from detr_jax.config import BackboneConfig, LossConfig, ModelConfig, ShapesConfig
from detr_jax.data import ShapesDataset
from detr_jax.losses import set_loss
from detr_jax.matching import Targets, match, matching_cost
from detr_jax.models import DETR, attention_maps
from detr_jax.postprocess import detections
from detr_jax.visualization import LabelledBoxes, comparison_sheet
from detr_jax.visualization.attention import heat_map

arguments = sys.argv[1:]
out = Path("walkthrough")
out.mkdir(exist_ok=True)

# %% The model: the paper's architecture in a small size
if arguments:
    model, config = load_model(arguments[0])
else:
    backbone = BackboneConfig(block="basic", blocks=(1, 1, 1), width=8, stem="small", norm="group")
    small = ModelConfig(
        backbone=backbone, num_classes=3, num_queries=8, hidden_dim=32, num_heads=4, encoder_layers=1,
        decoder_layers=2, feedforward_dim=64, dropout=0.0,
    )  # fmt: skip
    model = DETR(small, rngs=nnx.Rngs(0))

# %% Two images of different sizes in one bucket, padded at the bottom and right
source = ShapesDataset(ShapesConfig(val_images=2), "val")
samples = [source[0], source[1]]
images = np.zeros((2, 64, 64, 3), np.uint8)
for place, sample in zip(images, samples, strict=True):
    place[: sample.image.shape[0], : sample.image.shape[1]] = sample.image
sizes = jnp.array(source.sizes[:2], jnp.int32)
pixels = model.normalize(jnp.asarray(images), sizes)
print("images", pixels.shape, "valid (height, width):", sizes.tolist())

# %% Features, padding mask and positions (section 3.2): one token per cell of the backbone's last map
features = model.features(pixels, sizes)
print("features", features.projected.shape)
print(
    "padding mask", features.padding_mask.shape, "cells that are image:", (~features.padding_mask).sum((1, 2)).tolist()
)
print("positions", features.position.shape)
position = np.asarray(features.position[0, :, :, 0])
stride = images.shape[1] / features.position.shape[1]
cells = samples[0].image.shape[0] / stride, samples[0].image.shape[1] / stride  # that the first image fills
heat_map(samples[0].image, position - position.min(), cells, scale=4).save(out / "position.png")

# %% The encoder mixes all cells; the decoder turns each object query into an object (figures 3 and 6)
memory = model.encode(features)
decoded = model.decode(memory, features)
print("memory", memory.shape)
print("decoded queries", decoded.shape)
maps = attention_maps(model, pixels, sizes)
print("decoder attention", maps.decoder.shape, "each map sums to", round(float(maps.decoder[0, 0, 0].sum()), 4))
heat_map(samples[0].image, np.asarray(maps.decoder[0, :, 0].mean(axis=0)), cells, scale=4).save(out / "attention.png")

# %% The heads: classes with "no object", and boxes, after every decoder layer
predictions = maps.outputs
print("logits", predictions.logits.shape, "boxes", predictions.boxes.shape)

# %% The matching (equation 1): one query for each object, at the lowest total cost
most = max(len(sample.objects.labels) for sample in samples)
boxes, labels = np.zeros((2, most, 4), np.float32), np.zeros((2, most), np.int32)
for i, (sample, (height, width)) in enumerate(zip(samples, sizes.tolist(), strict=True)):
    x0, y0, x1, y1 = (sample.objects.boxes / np.array([width, height, width, height], np.float32)).T
    count = len(sample.objects.labels)
    boxes[i, :count] = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=1)
    labels[i, :count] = sample.objects.labels
counts = jnp.array([len(sample.objects.labels) for sample in samples], jnp.int32)
targets = Targets(jnp.asarray(boxes), jnp.asarray(labels), counts)
loss_config = LossConfig()
cost = matching_cost(predictions.layers, targets, loss_config.costs)
print("cost", cost.shape, "(layers, images, queries, targets)")
print("query of each target, last layer:", match(cost, targets.count)[-1].tolist())

# %% The set loss (equation 2): classes of all queries, boxes of the matched ones
loss, terms = set_loss(predictions, targets, loss_config)
print(
    "loss",
    round(float(loss), 3),
    {name: round(float(terms[name]), 3) for name in ("loss_ce", "loss_bbox", "loss_giou")},
)

# %% The detections: no anchors, no non-maximum suppression
found = detections(predictions.logits[-1], predictions.boxes[-1], sizes)
sure = [np.asarray(scores) >= 0.5 for scores in found.scores]
comparison_sheet(
    out / "predictions.png",
    [sample.image for sample in samples],
    [LabelledBoxes(sample.objects.boxes, sample.objects.labels) for sample in samples],
    [LabelledBoxes(*(np.asarray(x[i])[sure[i]] for x in (found.boxes, found.labels, found.scores))) for i in range(2)],
    source.categories,
)
print(f"pictures in {out}/: position.png, attention.png, predictions.png")
