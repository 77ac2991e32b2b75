"""The DETR model: backbone, transformer, object queries, class and box heads (sections 3.2 and A.3)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float32, Int

from detr_jax.config import DETRConfig, Precision
from detr_jax.models.attention_maps import AttentionMaps, attention_maps
from detr_jax.models.detector import DetectorModule
from detr_jax.models.feature_map import FeatureMap
from detr_jax.models.heads import BoxHead, torch_linear
from detr_jax.models.mask_head import MaskFeatures, create_mask_head
from detr_jax.models.positions import LearnedPositionEmbedding, SinePositionEmbedding
from detr_jax.models.transformer import Decoder, Encoder
from detr_jax.structures import Array, Outputs, Predictions, Targets


class Features(NamedTuple):
    """The backbone's last map, ready for the transformer. Dimensions: ``h, w`` cells, ``D`` model width."""

    projected: Float32[Array, "B h w D"]
    """[B, h, w, D] float32."""
    padding_mask: Bool[Array, "B h w"]
    """[B, h, w] bool, True at padding."""
    position: Float32[Array, "B h w D"]
    """[B, h, w, D] float32."""
    levels: tuple[FeatureMap, ...]
    """All levels of the backbone, from fine to coarse."""


def sample_padding_mask(
    sizes: Int[Array, "B 2"], bucket: tuple[Any, Any], cells: tuple[Any, Any]
) -> Bool[Array, "B h w"]:
    """The padding mask of a bucket brought to feature cells as the original does it.

    Cell ``i`` of ``n`` reads row ``floor(i * bucket / n)``: asymmetric nearest, not half-pixel centres.

    Args:
      sizes: [B, 2] int, valid (height, width) of each image in pixels.
      bucket: (height, width) of the padded batch in pixels.
      cells: (h, w) of the feature map.

    Returns:
      [B, h, w] bool, True at padding.
    """
    rows, columns = (jnp.arange(n) * pixels // n for n, pixels in zip(cells, bucket, strict=True))
    inside_rows = rows[None, :, None] < sizes[:, 0, None, None]
    inside_columns = columns[None, None, :] < sizes[:, 1, None, None]
    return ~(inside_rows & inside_columns)


class DETR(DetectorModule):
    """Detection transformer: an image in, a fixed set of boxes with classes out.

    ``model(images, sizes)`` is deterministic; pass ``rngs=nnx.Rngs(dropout=key)`` for dropout in training.
    """

    def __init__(self, config: DETRConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        embedding = {"sine": SinePositionEmbedding, "learned": LearnedPositionEmbedding}
        super().__init__(config)
        self.backbone = config.backbone.build(dtype=dtype, remat=config.remat in ("backbone", "all"), rngs=rngs)
        self.input_projection = torch_linear(self.backbone_levels.channels[-1], config.hidden_dim, dtype, rngs)
        self.position_embedding = embedding[config.position_embedding](config.hidden_dim, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        # of few operations, and in bfloat16 queries that hardly differ, as those of a new model, would be the same
        self.decoder = Decoder(dataclasses.replace(config, dtype=Precision.FLOAT32), rngs=rngs)
        self.object_queries = nnx.Param(jax.random.normal(rngs.params(), (config.num_queries, config.hidden_dim)))
        self.class_head = torch_linear(config.hidden_dim, config.num_logits, jnp.dtype("float32"), rngs)
        self.box_head = BoxHead(config.hidden_dim, rngs=rngs)
        self.mask_head = create_mask_head(config, rngs=rngs)

    def features(self, images: Float32[Array, "B H W 3"], sizes: Int[Array, "B 2"]) -> Features:
        """Backbone, projection, padding mask and position embedding of images [B, H, W, 3], sizes [B, 2]."""
        levels = self.backbone_features(images, sizes)
        last = levels[-1]
        padding_mask = last.padding_mask()
        if padding_mask is None:
            height, width = last.values.shape[1:3]
            padding_mask = sample_padding_mask(sizes, (images.shape[1], images.shape[2]), (height, width))
        projected = self.input_projection(last.values).astype(jnp.float32)
        return Features(projected, padding_mask, self.position_embedding(padding_mask), levels)

    def encode(self, features: Features, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The encoder's memory [B, h * w, D] of the features."""
        tokens, padding_mask, position = map(_flatten_cells, features[:3])
        return self.encoder(tokens, padding_mask, position, rngs=rngs)

    def decode(self, memory: jax.Array, features: Features, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The decoder's outputs [L, B, Q, D] of every layer, from the memory [B, h * w, D]."""
        padding_mask, position = map(_flatten_cells, features[1:3])
        return self.decoder(self.object_queries[...], memory, padding_mask, position, rngs=rngs)

    def __call__(
        self,
        images: Float32[Array, "B H W 3"],
        sizes: Int[Array, "B 2"],
        *,
        targets: Targets | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Outputs:
        """Detects objects.

        Args:
          images: [B, H, W, 3] float32, normalised (`normalize`), padded at the bottom and right.
          sizes: [B, 2] int32, valid (height, width) of each image in pixels.
          targets: ignored; detectors with denoising queries read them in training.
          rngs: with a "dropout" stream for training; None for inference.

        Returns:
          The `Outputs`, with the predictions of every decoder layer. With ``config.mask_padding`` they do not depend
          on how far an image was padded. Without it, they are the original's on the padded batch.
        """
        features = self.features(images, sizes)
        memory = self.encode(features, rngs=rngs)
        decoded = self.decode(memory, features, rngs=rngs)
        outputs = self.heads(decoded)
        if self.mask_head is None:
            return outputs
        return dataclasses.replace(outputs, mask_features=self.mask_features(features, memory, decoded))

    def heads(self, decoded: Float32[Array, "L B Q D"]) -> Outputs:
        """Logits and boxes of the decoder's outputs [L, B, Q, D]."""
        return Outputs(Predictions(self.class_head(decoded), self.box_head(decoded)))

    def mask_features(self, features: Features, memory: jax.Array, decoded: jax.Array) -> MaskFeatures:
        """What the mask head reads: the memory [B, h * w, D], and of the decoder's outputs [L, B, Q, D] the last."""
        assert self.mask_head is not None
        return MaskFeatures(
            queries=decoded[-1],
            memory=memory.reshape(features.projected.shape),
            padding_mask=features.padding_mask,
            projected=features.projected,
            levels=self.mask_head.used_levels(features.levels),
        )

    def attention_maps(
        self, images: Float32[Array, "B H W 3"], sizes: Int[Array, "B 2"], *, layer: int = -1
    ) -> AttentionMaps:
        """The outputs with the attention weights of one layer (`detr_jax.models.attention_maps`)."""
        return attention_maps(self, images, sizes, layer=layer)


def _flatten_cells(x: jax.Array) -> jax.Array:
    """[B, h, w, ...] to [B, h * w, ...]."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])
