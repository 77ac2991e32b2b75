"""A walk through Deformable DETR: pyramid, tokens, sampling points, refinement, proposals, focal loss.

Run ``python docs/walkthrough_deformable.py`` from the repository's root. The model is untrained: the shapes are those
of a trained one, the values are not. A picture is written to ``walkthrough/``. walkthrough.py goes through DETR.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from detr_jax.config import BackboneConfig, DeformableDETRConfig, LossConfig, ShapesConfig, focal_costs, focal_terms
from detr_jax.data import ShapesDataset
from detr_jax.losses import set_loss
from detr_jax.postprocess import top_detections
from detr_jax.structures import Targets
from detr_jax.visualization.sampling import sampled_points

out = Path("walkthrough")
out.mkdir(exist_ok=True)

# %% The model: two levels of the backbone and an extra one, boxes that every layer refines, two stages
backbone = BackboneConfig(block="basic", blocks=(1, 1, 1), width=8, stem="small", norm="group")
config = DeformableDETRConfig(
    backbone=backbone, num_classes=3, num_queries=8, hidden_dim=32, num_heads=4, encoder_layers=1, decoder_layers=2,
    feedforward_dim=64, dropout=0.0, backbone_levels=2, extra_levels=1, refine_boxes=True, two_stage=True,
)  # fmt: skip
model = config.build(rngs=nnx.Rngs(0))

# %% An image on a bucket of 64 x 64
source = ShapesDataset(ShapesConfig(val_images=1), "val")
image, (height, width) = source[0].image, source.sizes[0].tolist()
images = np.zeros((1, 64, 64, 3), np.uint8)
images[0, :height, :width] = image
sizes = jnp.array([[height, width]], jnp.int32)
pixels = model.normalize(jnp.asarray(images), sizes)

# %% The pyramid: cells of all levels as one row of tokens, from fine to coarse (section 4.1)
tokens = model.tokens(pixels, sizes)
print("levels", tokens.shapes, "strides", config.level_strides)
print("tokens", tokens.values.shape, "of which are padding:", int(tokens.padding_mask.sum()))
print("valid part (x, y) of each level:", np.round(tokens.valid_ratios[0], 2).tolist())

# %% The encoder: each token reads a few points around itself in every level
memory = model.encoder(tokens)
reference = tokens.centers[:, :, None] * tokens.valid_ratios[:, None]
places, weights = model.encoder.layers[0].self_attention.points(tokens.values + tokens.position, reference, tokens)
print("sampling points", places.shape, "(images, tokens, heads, levels, points, (x, y))")
print("weights of a head sum to", round(float(weights[0, 0, 0].sum()), 4))

# %% The first stage: every token proposes a box, and the best ones become queries (section 4.2)
start, proposals = model.start(memory, tokens)
print("proposals", proposals.boxes.shape, "queries", start.content.shape)

# %% The decoder: every layer corrects the boxes of the layer before
points = model.sampling_points(pixels, sizes)
predictions = points.outputs.layers
print("logits", predictions.logits.shape, "(no output for no object)", "boxes", predictions.boxes.shape)
moved = jnp.abs(predictions.boxes[1] - predictions.boxes[0]).max()
print("the second layer moves a box by at most", round(float(moved), 4), "(a new model corrects no box)")

# %% What the first query reads in the last layer
size = np.array([width, height], np.float32)
sampled_points(
    image, np.asarray(points.places[0, 0]).reshape(-1, 2) * size, np.asarray(points.weights[0, 0]).ravel(), scale=4
).save(out / "sampling.png")

# %% The loss: focal loss of an own probability for each class, boxes, and the same for the proposals
x0, y0, x1, y1 = (source[0].objects.boxes / np.array([width, height, width, height], np.float32)).T
boxes = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=1)[None]
labels = np.asarray(source[0].objects.labels, np.int32)[None]
targets = Targets(jnp.asarray(boxes), jnp.asarray(labels), jnp.array([labels.size], jnp.int32))
loss, terms = set_loss(points.outputs, targets, LossConfig(terms=focal_terms(), costs=focal_costs()))
print("loss", round(float(loss), 3), {name: round(float(terms[name]), 3) for name in ("loss_ce", "loss_ce_enc")})

# %% The detections: the most probable pairs of a query and a class
found = jax.tree.map(lambda x: x[0], top_detections(predictions.logits[-1], predictions.boxes[-1], sizes, 5))
print("best scores", np.round(found.scores, 3).tolist(), "labels", found.labels.tolist())
print(f"picture in {out}/: sampling.png")
