"""What a detector computes on its way, for comparison with other implementations."""

import jax
from flax import nnx


@nnx.jit
def model_outputs(model, images: jax.Array, sizes: jax.Array) -> dict[str, jax.Array]:
    """Last stage's features [B, h, w, C], memory [B, h, w, D], logits and boxes of the last decoder layer."""
    stages = model.backbone(images, sizes if model.mask_padding else None)
    features = model.features(images, sizes)
    memory = model.encode(features).reshape(features.projected.shape)
    outputs = model(images, sizes)
    return {
        "features": stages[-1].values,
        "memory": memory,
        "logits": outputs.logits[-1],
        "boxes": outputs.boxes[-1],
    }
