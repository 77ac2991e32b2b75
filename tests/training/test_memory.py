import jax
import numpy as np
from flax import nnx

from detr_jax.models import DETR
from detr_jax.sharding import create_mesh
from detr_jax.training.memory import step_memory
from tests.tiny import tiny_config


def test_the_memory_of_a_step_is_that_of_state_batch_and_activations():
    config = tiny_config()
    config.model.decoder_layers = 1
    found = step_memory(config, (48, 64), 3, create_mesh(jax.devices()[:1]))
    values = nnx.state(nnx.eval_shape(lambda: DETR(config.model, rngs=nnx.Rngs(0))), nnx.Param)
    parameters = 4 * sum(int(np.prod(x.shape)) for x in jax.tree.leaves(values))
    size = config.training.batch_size
    batch = size * (48 * 64 * 3 + 2 * 4 + 3 * 4 * 4 + 3 * 4 + 4)
    expected = 4 * parameters + batch  # parameters, their moving average, and two moments of AdamW
    assert expected <= found.state <= 1.1 * expected
    stem = size * 24 * 32 * config.model.backbone.width * 4  # float32
    assert stem < found.temporary < 1000 * stem
    assert found.total == found.state + found.temporary
