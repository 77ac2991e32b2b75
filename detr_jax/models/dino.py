"""DINO: DETR with improved denoising anchor boxes (Zhang et al., 2022, arXiv:2203.03605)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Float32, Int

from detr_jax.config import DINOConfig
from detr_jax.models.deformable_detector import NEVER, DeformableDetector
from detr_jax.models.deformable_transformer import decoder_layers
from detr_jax.models.denoising import Slots, attention_mask, draw_noise, fill_slots, noisy_targets, positive_slots
from detr_jax.models.heads import MLP, class_head, correction_head
from detr_jax.models.initializers import xavier_uniform
from detr_jax.models.positions import coordinate_embedding
from detr_jax.models.proposals import Proposer, box_logits_from, gathered, token_anchors
from detr_jax.models.pyramid import Tokens
from detr_jax.models.rematerialization import recomputed
from detr_jax.models.transformer import LayerNorm
from detr_jax.structures import Array, Denoising, Outputs, Predictions, Targets


class DINODecoder(nnx.Module):
    """Decoder layers whose queries take their positions from their boxes, which every layer corrects."""

    def __init__(self, config: DINOConfig, *, rngs: nnx.Rngs):
        dim = config.hidden_dim
        self.layers = decoder_layers(config, rngs)
        self.norm = LayerNorm(dim, rngs=rngs)
        self.position_head = MLP(2 * dim, (dim, dim), kernel_init=xavier_uniform(), rngs=rngs)
        self.scale_positions = not config.mask_padding
        self.eps = config.inverse_sigmoid_eps
        self.remat = config.remat in ("transformer", "all")

    def __call__(
        self,
        content: jax.Array,
        boxes: jax.Array,
        memory: jax.Array,
        tokens: Tokens,
        class_heads: Sequence[nnx.Linear],
        box_heads: Sequence[MLP],
        *,
        attn_mask: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Predictions:
        """The predictions of every layer.

        A layer's own correction of the boxes comes from its output before the norm, and the next layer starts from it
        without gradient. The prediction comes from the output after the norm, and corrects the boxes of the layer
        before with gradient: look forward twice (section 3.5).

        Args:
          content: [B, Q, D].
          boxes: [B, Q, 4] cxcywh in 0..1 of the unpadded image.
          memory: [B, S, D].
          tokens: where the cells of the memory are.
          class_heads: one for each layer, or one for all.
          box_heads: likewise.
          attn_mask: [B, Q, Q] bool, True where a query may not see another one.
        """
        x, reference, earlier = content, boxes, boxes
        logits, predicted = [], []
        for i, layer in enumerate(self.layers):
            head = i % len(box_heads)
            call = recomputed(layer) if self.remat else layer
            position = self._position(reference, tokens)
            x = call(x, position, reference, memory, tokens, attn_mask=attn_mask, rngs=rngs)
            normed = self.norm(x)
            logits.append(class_heads[head](normed))
            predicted.append(self._corrected(earlier, box_heads[head](normed)))
            earlier = self._corrected(reference, box_heads[head](x))
            reference = lax.stop_gradient(earlier)
        return Predictions(jnp.stack(logits), jnp.stack(predicted))

    def _position(self, boxes: jax.Array, tokens: Tokens) -> jax.Array:
        """The position [B, Q, D] of queries with boxes [B, Q, 4]."""
        if self.scale_positions:  # the original measures boxes on the padded image here
            boxes = boxes * jnp.tile(tokens.valid_ratios[:, :1], 2)
        y_first = boxes[..., jnp.array([1, 0, 2, 3])]
        return self.position_head(coordinate_embedding(y_first, self.norm.num_features // 2))

    def _corrected(self, boxes: jax.Array, correction: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(box_logits_from(boxes, correction, self.eps))


class DINO(DeformableDetector):
    """Detection transformer with proposals of the encoder, learned contents, and denoising queries in training.

    ``model(images, sizes)`` is deterministic. In training, pass ``targets`` and ``rngs=nnx.Rngs(dropout=key)``: the
    noise of the denoising queries depends only on the key.
    """

    def __init__(self, config: DINOConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        dim, heads = config.hidden_dim, 1 if config.share_heads else config.decoder_layers
        self.num_classes = config.num_classes
        self.denoising_queries = config.denoising_queries // 2 * 2
        self.label_noise, self.box_noise = config.denoising_label_noise, config.denoising_box_noise
        self.eps = config.inverse_sigmoid_eps
        self.decoder = DINODecoder(config, rngs=rngs)
        self.content = nnx.Param(xavier_uniform()(rngs.params(), (config.num_queries, dim)))
        self.label_embedding = nnx.Param(jax.random.normal(rngs.params(), (config.num_classes, dim)))
        self.proposer = Proposer(dim, rngs=rngs)
        # the last ones are the encoder's
        self.class_head = nnx.List([class_head(config, rngs) for _ in range(heads + 1)])
        self.box_head = nnx.List([correction_head(dim, rngs) for _ in range(heads + 1)])

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
          targets: the objects, which the denoising queries start from. Without ``rngs`` they are ignored.
          rngs: with a "dropout" stream for training; None for inference.

        Returns:
          The `Outputs`: the predictions of every decoder layer, the proposals that the queries start from, and in
          training the denoising queries. The object queries never depend on the targets. With ``config.mask_padding``
          the predictions do not depend on how far an image was padded. Without it, they are the original's on the
          padded batch.
        """
        tokens = self.tokens(images, sizes)
        memory = self.encoder(tokens, rngs=rngs)
        proposals = self.proposals(memory, tokens)
        content = jnp.broadcast_to(self.content[...][None], (memory.shape[0], *self.content.shape))
        boxes = lax.stop_gradient(proposals.boxes[0])
        attn_mask, slots = None, None
        if targets is not None and rngs is not None and self.denoising_queries:
            slots, labels, noisy_boxes = self.denoising_slots(targets, rngs)
            content = jnp.concatenate([content, self.label_embedding[...][labels]], axis=1)
            boxes = jnp.concatenate([boxes, noisy_boxes], axis=1)
            attn_mask = attention_mask(slots, self.num_queries)
        heads = list(self.class_head)[:-1], list(self.box_head)[:-1]
        found = self.decoder(content, boxes, memory, tokens, *heads, attn_mask=attn_mask, rngs=rngs)
        layers = jax.tree.map(lambda x: x[:, :, : self.num_queries], found)
        return Outputs(layers, proposals, None if slots is None else self._denoising(found, slots))

    def proposals(self, memory: Float32[Array, "B S D"], tokens: Tokens) -> Predictions:
        """The best proposals of the memory [B, S, D] as one layer, one for each query, best first."""
        anchors = token_anchors(tokens)
        projected = self.proposer.project(memory, anchors)
        logits, starts, absent = self.candidates(self.class_head[-1](projected), anchors.logits, tokens)
        _, chosen = lax.top_k(logits.max(axis=-1), self.num_queries)
        features = gathered(projected, jnp.minimum(chosen, memory.shape[1] - 1))
        boxes = jax.nn.sigmoid(self.box_head[-1](features) + gathered(starts, chosen))
        absent = jnp.take_along_axis(absent, chosen, axis=1)
        return Predictions(gathered(logits, chosen)[None], boxes[None], absent=absent[None])

    def denoising_slots(self, targets: Targets, rngs: nnx.Rngs) -> tuple[Slots, jax.Array, jax.Array]:
        """The slots of the denoising queries with the labels [B, K] and boxes [B, K, 4] that they start from."""
        slots = fill_slots(targets.count, self.denoising_queries, targets.labels.shape[1])
        noise = draw_noise(
            rngs.dropout(), slots.target.shape, num_classes=self.num_classes, label_noise=self.label_noise
        )
        return slots, *noisy_targets(slots, noise, targets, box_noise=self.box_noise, eps=self.eps)

    def _denoising(self, found: Predictions, slots: Slots) -> Denoising:
        """The denoising queries among the predictions of all queries."""
        logits, boxes = found.logits[:, :, self.num_queries :], found.boxes[:, :, self.num_queries :]
        logits = jnp.where(slots.is_used[None, ..., None], logits, NEVER)
        absent = jnp.broadcast_to(~slots.is_used[None], boxes.shape[:-1])
        matched_query, target = positive_slots(slots)
        return Denoising(Predictions(logits, boxes, absent=absent), matched_query, target, slots.num_groups)
