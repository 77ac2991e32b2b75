"""Deformable DETR: single scale and multi-scale, iterative box refinement, and two stages (Zhu et al., 2021)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float32, Int

from detr_jax.config import DeformableDETRConfig
from detr_jax.models.deformable_detector import DeformableDetector
from detr_jax.models.deformable_transformer import DeformableDecoder, QueryStart
from detr_jax.models.feature_map import FeatureMap
from detr_jax.models.heads import class_head, correction_head
from detr_jax.models.initializers import xavier_uniform
from detr_jax.models.mask_head import MaskFeatures, create_mask_head
from detr_jax.models.proposals import QueryProposer, best_boxes, box_logits_from, token_anchors
from detr_jax.models.pyramid import Tokens
from detr_jax.structures import Array, Outputs, Predictions, Targets


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


class DeformableDETR(DeformableDetector):
    """Detection transformer that attends to a few points of several feature maps.

    ``model(images, sizes)`` is deterministic; pass ``rngs=nnx.Rngs(dropout=key)`` for dropout in training.
    """

    def __init__(self, config: DeformableDETRConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        dim = config.hidden_dim
        self.num_queries = config.num_queries
        self.refine_boxes = config.refine_boxes
        self.eps = config.inverse_sigmoid_eps
        self.decoder = DeformableDecoder(config, rngs=rngs)
        self.queries = None if config.two_stage else Queries(config.num_queries, dim, rngs=rngs)
        self.proposer = QueryProposer(dim, rngs=rngs) if config.two_stage else None
        heads = (config.decoder_layers if config.refine_boxes else 1) + config.two_stage
        self.class_head = nnx.List([class_head(config, rngs) for _ in range(heads)])
        self.mask_head = create_mask_head(config, rngs=rngs)
        self.box_head = nnx.List([correction_head(dim, rngs) for _ in range(heads)])
        if not config.two_stage:  # the first boxes get an eighth of the image's sides
            self.box_head[0].layers[-1].bias = nnx.Param(jnp.array([0.0, 0.0, -2.0, -2.0]))

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
        logits, box_logits, absent = self.candidates(logits, box_logits, tokens)
        reference = best_boxes(logits[..., 0], box_logits, self.num_queries)
        start = QueryStart(*self.proposer.queries(reference), reference)
        return start, Predictions(logits[None], jax.nn.sigmoid(box_logits)[None], absent=absent[None])

    def predictions(self, layer: int, x: jax.Array, reference: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits [B, Q, C] and boxes [B, Q, 4] of a decoder layer's output [B, Q, D] and reference points or boxes."""
        head = layer if self.refine_boxes else 0
        return self.class_head[head](x), jax.nn.sigmoid(box_logits_from(reference, self.box_head[head](x), self.eps))
