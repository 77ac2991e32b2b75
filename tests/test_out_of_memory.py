"""Real out-of-memory errors, from buckets and arrays that are too large for any machine."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx
from orbax.checkpoint import v1 as ocp
from PIL import Image

from detr_jax import Detector
from detr_jax.checkpoints import Checkpoints, load_model
from detr_jax.cli import main
from detr_jax.data.batching import LoaderError
from detr_jax.memory import OutOfMemoryError, arrays_text, fitting, is_out_of_memory, size_text
from detr_jax.models import DETR
from detr_jax.testing import tiny_config
from detr_jax.training import checkpointing
from detr_jax.training.error import TrainingError
from detr_jax.training.loop import train

HUGE = (60000, 60000)


@pytest.fixture
def checkpoint(tmp_path, rngs):
    """A workdir whose model has a bucket of usual size and one that is too large for any machine."""
    config = tiny_config()
    config.data.val_buckets = ((32, 32), HUGE)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    checkpoints.save(0, {"params": nnx.as_pure(nnx.state(DETR(config.model, rngs=rngs)))}, config)
    checkpoints.close()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("need", "size"),
    [
        (lambda: np.empty((2**20, 2**26), np.uint8), "64.0 TiB"),
        (lambda: jax.block_until_ready(jnp.zeros((2**20, 2**26), np.uint8)), "64 TiB"),
        (lambda: b" " * 2**60, ""),
    ],
    ids=["numpy", "jax", "python"],
)
def test_every_kind_of_out_of_memory_error_gets_the_same_message(need, size):
    with pytest.raises(OutOfMemoryError) as caught, fitting("The thing", "Take less."):
        need()
    piece = f" ({size} in one piece)" if size else ""
    assert str(caught.value) == f"The thing does not fit into memory{piece}. Take less."
    assert is_out_of_memory(caught.value)


def test_the_cause_of_an_error_counts_and_other_errors_pass():
    wrapped = ValueError("it could not be read")
    wrapped.__cause__ = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
    assert is_out_of_memory(wrapped)
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    for other in (LoaderError("a process ended: it may have run out of memory"), KeyError("a"), RuntimeError()):
        assert not is_out_of_memory(other)
        with pytest.raises(type(other)), fitting("The thing", "Take less."):
            raise other
    inner = OutOfMemoryError("What is inside does not fit.")
    with pytest.raises(OutOfMemoryError, match="What is inside"), fitting("The thing", "Take less."):
        raise inner


def test_a_tree_is_described_by_its_size_and_its_largest_array():
    tree = {"a": {"b": jax.ShapeDtypeStruct((2**20, 3), "float32"), "c": np.zeros(2**20, np.float32)}}
    assert arrays_text(tree) == "16 MiB, of which a/b [1048576, 3] takes 12 MiB"
    assert [size_text(n) for n in (2**20, 3 * 2**29, 5 * 2**40)] == ["1 MiB", "1.5 GiB", "5 TiB"]


def test_prediction_continues_with_the_next_image(checkpoint, rng, tmp_path):
    sizes = {"a.png": (30, 20), "b.png": (40, 50), "c.png": (20, 30)}  # only the second needs the huge bucket
    (tmp_path / "images").mkdir()
    for name, size in sizes.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / "images" / name)
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["predict", str(checkpoint), str(tmp_path / "images"), "--out", str(out)])
    assert result.exit_code == 1
    assert f"{tmp_path / 'images' / 'b.png'} was not predicted. The bucket of 60000 x 60000 pixels" in result.stderr
    assert "does not fit into memory (" in result.stderr
    assert [entry["picture"] for entry in json.loads((out / "predictions.json").read_text())] == ["a.png", "c.png"]


def test_attention_says_what_does_not_fit(checkpoint):
    detector = Detector.from_checkpoint(checkpoint)
    image = np.zeros((40, 50, 3), np.uint8)
    with pytest.raises(OutOfMemoryError, match=r"The attention on the bucket of 60000 x 60000"):
        detector.attention(image)


def test_evaluation_says_which_field_to_lower(checkpoint):
    result = CliRunner().invoke(main, ["evaluate", str(checkpoint), f"--config.data.val_buckets=({HUGE},)"])
    assert result.exit_code == 1
    assert "60000 x 60000 pixels, does not fit into memory" in result.stderr
    assert "Lower evaluation.batch_size=4" in result.stderr


def test_a_run_whose_model_does_not_fit_names_its_largest_array(tmp_path, one_device, monkeypatch):
    # fails as the values of such a model do, without computing those of its smaller arrays first
    monkeypatch.setattr(checkpointing, "initialize_missing", lambda *_: jnp.zeros((2**20, 2**26)))
    config = tiny_config()
    config.model = dataclasses.replace(config.model, num_classes=1_700_000_123)
    with pytest.raises(TrainingError, match=r"class_head/kernel \[16, 1700000124\] takes .*model\.num_classes"):
        train(config, tmp_path, mesh=one_device)


def test_a_checkpoint_that_does_not_fit_is_not_called_damaged(checkpoint, monkeypatch):
    read = ocp.load_checkpointables

    def fail(path, parts):
        if "params" in parts:
            raise ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 3221225472 bytes.")
        return read(path, parts)

    monkeypatch.setattr("orbax.checkpoint.v1.load_checkpointables", fail)
    with pytest.raises(OutOfMemoryError, match=r"The model in .* does not fit into memory \(3 GiB in one piece\)"):
        load_model(checkpoint)
