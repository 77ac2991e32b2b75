"""The heads that turn a query's output into a class and a box (DETR, section 3.2)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float32

from detr_jax.config.deformable import INITIAL_CLASS_LOGIT, DeformableTransformerConfig
from detr_jax.models.initializers import Initializer, fan_in_uniform
from detr_jax.structures import Array


def torch_linear(
    fan_in: int, fan_out: int, dtype: jnp.dtype, rngs: nnx.Rngs, kernel_init: Initializer | None = None
) -> nnx.Linear:
    """A linear layer that starts as PyTorch's do, unless ``kernel_init`` is given."""
    init = fan_in_uniform(fan_in)
    return nnx.Linear(fan_in, fan_out, kernel_init=kernel_init or init, bias_init=init, dtype=dtype, rngs=rngs)


class MLP(nnx.Module):
    """Linear layers with ReLU between them, in float32 always. By default they start as PyTorch's do."""

    def __init__(self, dim: int, widths: Sequence[int], *, kernel_init: Initializer | None = None, rngs: nnx.Rngs):
        float32 = jnp.dtype("float32")
        fans = zip((dim, *widths[:-1]), widths, strict=True)
        self.layers = nnx.List([torch_linear(fan_in, fan_out, float32, rngs, kernel_init) for fan_in, fan_out in fans])

    def __call__(self, x: Float32[Array, "*N D"]) -> Float32[Array, "*N outputs"]:
        """[..., D] to [..., widths[-1]], float32."""
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class BoxHead(MLP):
    """Three linear layers with ReLU between them, and a sigmoid."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        super().__init__(dim, (dim, dim, 4), rngs=rngs)

    def __call__(self, x: Float32[Array, "*N D"]) -> Float32[Array, "*N 4"]:
        """[..., D] to cxcywh boxes [..., 4] in 0..1, float32."""
        return jax.nn.sigmoid(super().__call__(x))


def class_head(config: DeformableTransformerConfig, rngs: nnx.Rngs) -> nnx.Linear:
    """A class head of Deformable DETR or DINO. With sigmoids, every class is improbable at first."""
    head = torch_linear(config.hidden_dim, config.num_logits, jnp.dtype("float32"), rngs)
    if config.classification == "sigmoid":
        head.bias = nnx.Param(jnp.full(config.num_logits, INITIAL_CLASS_LOGIT))
    return head


def correction_head(dim: int, rngs: nnx.Rngs) -> MLP:
    """A head that corrects boxes [..., 4] as logits. It corrects nothing at first."""
    head = MLP(dim, (dim, dim, 4), rngs=rngs)
    last = head.layers[-1]
    last.kernel = nnx.Param(jnp.zeros((dim, 4)))
    last.bias = nnx.Param(jnp.zeros(4))
    return head
