import jax
import numpy as np

from detr_jax.sharding import create_mesh
from detr_jax.training.memory import step_memory
from detr_jax.training.optimizer import create_optimizer
from detr_jax.training.step import create_model, create_state
from tests.tiny import tiny_config


def test_the_memory_of_a_step_is_that_of_state_batch_and_activations():
    config = tiny_config()
    mesh = create_mesh(jax.devices()[:1])
    found = step_memory(config, (48, 64), 3, mesh)
    model = create_model(config)
    state = create_state(model, create_optimizer(config.optimizer, 1, 1), config, mesh)
    arrays = sum(np.asarray(x).nbytes for x in jax.tree.leaves((state, model.frozen)))
    size = config.training.batch_size
    batch = size * (48 * 64 * 3 + 2 * 4 + 3 * 4 * 4 + 3 * 4 + 4)
    assert arrays + batch <= found.state <= 1.1 * (arrays + batch)
    stem = size * 24 * 32 * config.model.backbone.width * 4  # float32
    assert stem < found.temporary < 1000 * stem
    assert found.total == found.state + found.temporary
