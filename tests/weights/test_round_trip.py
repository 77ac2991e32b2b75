"""Import, save with Orbax, restore in a fresh process, predict: the same bits."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from detr_jax.checkpoints import Checkpoints
from detr_jax.config import Config
from detr_jax.weights import load_pretrained, read_pretrained
from detr_jax.weights.trees import by_path
from tests.weights import framework_states as states
from tests.weights.fixture_images import BUCKET, SIZES, padded

RESTORE_AND_PREDICT = """
import sys
import numpy as np
from flax import nnx
from detr_jax.checkpoints import load_model

folder = sys.argv[1]
model, _ = load_model(folder)
inputs = np.load(folder + "/inputs.npz")
outputs = nnx.jit(model)(inputs["images"], inputs["sizes"])
np.savez(folder + "/outputs.npz", logits=outputs.logits, boxes=outputs.boxes)
"""


def test_predictions_survive_bit_by_bit(bottleneck, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in states.mmdetection(bottleneck.weights).items()}, path)
    weights = read_pretrained(path)
    model = load_pretrained(path)
    images, sizes = padded(bottleneck.images, BUCKET), np.array(SIZES)

    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    checkpoints.save(0, {"params": nnx.as_pure(nnx.state(model))}, Config(model=weights.config))
    checkpoints.close()
    np.savez(tmp_path / "run" / "inputs.npz", images=images, sizes=sizes)
    subprocess.run([sys.executable, "-c", RESTORE_AND_PREDICT, str(tmp_path / "run")], check=True)

    found = np.load(tmp_path / "run" / "outputs.npz")
    outputs = nnx.jit(model)(jnp.asarray(images), jnp.asarray(sizes))
    logits, boxes = outputs.logits, outputs.boxes
    np.testing.assert_array_equal(found["logits"], logits)
    np.testing.assert_array_equal(found["boxes"], boxes)

    again = read_pretrained(tmp_path / "run")
    assert again.kind == "detr_jax"
    assert again.config == weights.config
    assert again.params.keys() == weights.params.keys() == by_path(nnx.as_pure(nnx.state(model))).keys()
    for name, value in weights.params.items():
        np.testing.assert_array_equal(again.params[name], value)
