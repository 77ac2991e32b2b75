"""Deformable DETR: single scale and multi-scale, iterative box refinement, and two stages (Zhu et al., 2021)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float32, Int

from detr_jax.config import DeformableDETRConfig
from detr_jax.config.deformable import INITIAL_CLASS_LOGIT
from detr_jax.models.deformable_transformer import DeformableDecoder, DeformableEncoder, QueryStart
from detr_jax.models.detector import DetectorModule
from detr_jax.models.feature_map import FeatureMap
from detr_jax.models.heads import MLP, torch_linear
from detr_jax.models.initializers import xavier_uniform
from detr_jax.models.mask_head import MaskFeatures, create_mask_head
from detr_jax.models.proposals import Proposer, best_boxes, box_logits_from, token_anchors
from detr_jax.models.pyramid import FeaturePyramid, Tokens
from detr_jax.models.sampling_points import SamplingPoints, sampling_points
from detr_jax.structures import Array, Outputs, Predictions, Targets

_NEVER = -1e4
"""A logit whose sigmoid is exactly 0 in float32, with a focal loss of 0 for "no object"."""


class Queries(nnx.Module):
    """Learned queries: position, content, and a reference point that follows from the position."""

    def __init__(self, number: int, dim: int, *, rngs: nnx.Rngs):
        self.position = nnx.Param(jax.random.normal(rngs.params(), (number, dim)))
        self.content = nnx.Param(jax.random.normal(rngs.params(), (number, dim)))
        self.reference = nnx.Linear(dim, 2, kernel_init=xavier_uniform(), rngs=rngs)

    def __call__(self, batch: Any) -> QueryStart:
        """The queries for every image of a batch, whose size may be symbolic."""
        position, content = self.position[...], self.content[...]
        start = QueryStart(position, content, jax.nn.sigmoid(self.reference(position)))
        return QueryStart(*(jnp.broadcast_to(x[None], (batch, *x.shape)) for x in start))


class DeformableDETR(DetectorModule):
    """Detection transformer that attends to a few points of several feature maps.

    ``model(images, sizes)`` is deterministic; pass ``rngs=nnx.Rngs(dropout=key)`` for dropout in training.
    """

    def __init__(self, config: DeformableDETRConfig, *, rngs: nnx.Rngs):
        dtype, dim = jnp.dtype(config.dtype), config.hidden_dim
        super().__init__(config)
        self.num_queries = config.num_queries
        self.refine_boxes = config.refine_boxes
        self.backbone = config.backbone.build(dtype=dtype, remat=config.remat in ("backbone", "all"), rngs=rngs)
        self.pyramid = FeaturePyramid(config, rngs=rngs)
        self.encoder = DeformableEncoder(config, rngs=rngs)
        self.decoder = DeformableDecoder(config, rngs=rngs)
        self.queries = None if config.two_stage else Queries(config.num_queries, dim, rngs=rngs)
        self.proposer = Proposer(dim, rngs=rngs) if config.two_stage else None
        heads = (config.decoder_layers if config.refine_boxes else 1) + config.two_stage
        self.class_head = nnx.List([_class_head(config, rngs) for _ in range(heads)])
        self.mask_head = create_mask_head(config, rngs=rngs)
        self.box_head = nnx.List([_box_head(dim, i == 0 and not config.two_stage, rngs) for i in range(heads)])

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
          targets: ignored.
          rngs: with a "dropout" stream for training; None for inference.

        Returns:
          The `Outputs`, with the predictions of every decoder layer. In a detector with two stages, the proposals of
          all tokens are with them. With ``config.mask_padding`` the predictions do not depend on how far an image was
          padded. Without it, they are the original's on the padded batch.
        """
        features = self.backbone_features(images, sizes)
        tokens = self.tokens_of(features, images, sizes)
        memory = self.encoder(tokens, rngs=rngs)
        start, proposals = self.start(memory, tokens)
        layers, decoded = self.decoder(start, memory, tokens, self.predictions, rngs=rngs)
        outputs = Outputs(layers, proposals, class_agnostic_proposals=True)
        if self.mask_head is None:
            return outputs
        return dataclasses.replace(outputs, mask_features=self.mask_features(features, tokens, memory, decoded))

    def tokens(self, images: Float32[Array, "B H W 3"], sizes: Int[Array, "B 2"]) -> Tokens:
        """The tokens of images [B, H, W, 3] with valid sizes [B, 2], from the backbone and the feature pyramid."""
        return self.tokens_of(self.backbone_features(images, sizes), images, sizes)

    def tokens_of(
        self, features: tuple[FeatureMap, ...], images: Float32[Array, "B H W 3"], sizes: Int[Array, "B 2"]
    ) -> Tokens:
        """The tokens of the backbone's features of images [B, H, W, 3] with valid sizes [B, 2]."""
        return self.pyramid(features, sizes, (images.shape[1], images.shape[2]))

    def mask_features(
        self,
        features: tuple[FeatureMap, ...],
        tokens: Tokens,
        memory: Float32[Array, "B S D"],
        decoded: Float32[Array, "B Q D"],
    ) -> MaskFeatures:
        """What the mask head reads. There is one level of tokens."""
        assert self.mask_head is not None
        (cells,) = tokens.shapes

        def as_map(x: jax.Array) -> jax.Array:
            return x.reshape(x.shape[0], *cells, *x.shape[2:])

        return MaskFeatures(
            queries=decoded,
            memory=as_map(memory),
            padding_mask=as_map(tokens.padding_mask),
            projected=as_map(tokens.values),
            levels=self.mask_head.used_levels(features),
        )

    def start(self, memory: Float32[Array, "B S D"], tokens: Tokens) -> tuple[QueryStart, Predictions | None]:
        """The queries for the memory [B, S, D], and in a detector with two stages the proposals that they come from."""
        if self.proposer is None:
            assert self.queries is not None
            return self.queries(memory.shape[0]), None
        anchors = token_anchors(tokens)
        projected = self.proposer.project(memory, anchors)
        logits = self.class_head[-1](projected)
        box_logits = self.box_head[-1](projected) + anchors.logits
        absent = jnp.zeros_like(tokens.padding_mask)
        if self.mask_padding:  # in the original, padding proposes a box too
            absent = tokens.padding_mask
            logits = jnp.where(absent[..., None], _NEVER, logits)
        if (missing := self.num_queries - logits.shape[1]) > 0:
            logits = jnp.pad(logits, [(0, 0), (0, missing), (0, 0)], constant_values=_NEVER)
            box_logits = jnp.pad(box_logits, [(0, 0), (0, missing), (0, 0)])
            absent = jnp.pad(absent, [(0, 0), (0, missing)], constant_values=True)
        reference = best_boxes(logits[..., 0], box_logits, self.num_queries)
        start = QueryStart(*self.proposer.queries(reference), reference)
        return start, Predictions(logits[None], jax.nn.sigmoid(box_logits)[None], absent=absent[None])

    def sampling_points(
        self, images: Float32[Array, "B H W 3"], sizes: Int[Array, "B 2"], *, layer: int = -1
    ) -> SamplingPoints:
        """The outputs with the points that one decoder layer samples (`detr_jax.models.sampling_points`)."""
        return sampling_points(self, images, sizes, layer=layer)

    def predictions(self, layer: int, x: jax.Array, reference: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits [B, Q, C] and boxes [B, Q, 4] of a decoder layer's output [B, Q, D] and reference points or boxes."""
        head = layer if self.refine_boxes else 0
        return self.class_head[head](x), jax.nn.sigmoid(box_logits_from(reference, self.box_head[head](x)))


def _class_head(config: DeformableDETRConfig, rngs: nnx.Rngs) -> nnx.Linear:
    head = torch_linear(config.hidden_dim, config.num_logits, jnp.dtype("float32"), rngs)
    if config.classification == "sigmoid":
        head.bias = nnx.Param(jnp.full(config.num_logits, INITIAL_CLASS_LOGIT))
    return head


def _box_head(dim: int, is_first: bool, rngs: nnx.Rngs) -> MLP:
    """A head that corrects nothing at first; the first one gives its boxes an eighth of the image's sides."""
    head = MLP(dim, (dim, dim, 4), rngs=rngs)
    last = head.layers[-1]
    last.kernel = nnx.Param(jnp.zeros((dim, 4)))
    last.bias = nnx.Param(jnp.array([0.0, 0.0, -2.0, -2.0]) if is_first else jnp.zeros(4))
    return head
