import os

import jax
import numpy as np
import pytest
from flax import nnx

from detr_jax.checkpoints import (
    CheckpointError,
    Checkpoints,
    find_checkpoint,
    load_category_ids,
    load_class_names,
    load_config,
    load_model,
    newest_checkpoint,
    restore_parts,
)
from detr_jax.config import Config
from detr_jax.models import DETR
from detr_jax.testing import tiny_config


@pytest.fixture
def saved(tmp_path, rng):
    """A folder with checkpoints 1 and 2 of a tiny model, and the model's values."""
    config = tiny_config()
    model = DETR(config.model, rngs=nnx.Rngs(int(rng.integers(2**31))))
    values = nnx.as_pure(nnx.state(model))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert newest_checkpoint(tmp_path) is None
    for step in (0, 1, 2):
        checkpoints.save(step, {"params": values, "ema": jax.tree.map(lambda x, step=step: x + step, values)}, config)
    checkpoints.close()
    return tmp_path, model, values


@pytest.mark.parametrize("ids", [{}, {0: 7, 1: 1_700_000_123, 2: 2**52}])
def test_class_names_and_category_ids_are_stored_by_label(tmp_path, ids):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.class_names, checkpoints.category_ids = {0: "a", 1: "ü", 2: "c"}, ids
    checkpoints.save(0, {"params": {"x": np.zeros(3, np.float32)}}, tiny_config())
    checkpoints.close()
    assert load_class_names(tmp_path) == {0: "a", 1: "ü", 2: "c"}
    assert load_category_ids(tmp_path) == ids


def test_the_newest_checkpoints_are_kept_and_found(saved):
    folder = saved[0]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["1", "2"]
    for path in (folder, folder / "checkpoints", folder / "checkpoints" / "2"):
        assert find_checkpoint(path) == (folder / "checkpoints" / "2").absolute()


def test_a_loaded_model_has_the_same_outputs_to_the_bit_and_its_configuration(saved, rng):
    folder, model, _ = saved
    images = rng.normal(size=(1, 32, 32, 3)).astype(np.float32)
    sizes = np.array([[32, 20]])
    plain, config = load_model(folder, ema=False)
    assert config == tiny_config() == load_config(folder)
    found, expected = plain(images, sizes), model(images, sizes)
    np.testing.assert_array_equal(found.logits, expected.logits)
    np.testing.assert_array_equal(found.boxes, expected.boxes)


def test_the_ema_is_loaded_if_the_checkpoint_has_it(saved):
    folder, _, values = saved
    averaged, _ = load_model(folder)
    found = jax.tree.leaves(nnx.as_pure(nnx.state(averaged)))
    assert all(isinstance(leaf, jax.Array) for leaf in found)  # numpy arrays would be sent to the device at every call
    for a, b in zip(found, jax.tree.leaves(values), strict=True):
        np.testing.assert_array_equal(a, b + 2)


def test_a_folder_that_is_not_a_checkpoint_raises_an_error_with_its_name(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_model(tmp_path)


def test_a_damaged_checkpoint_raises_an_error_with_its_name(saved):
    checkpoint = find_checkpoint(saved[0])
    largest = max((checkpoint / "ema").rglob("*"), key=lambda file: file.stat().st_size * file.is_file())
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"checkpoints/2 is damaged: its 'ema' cannot be read \("):
        load_model(checkpoint)
    load_model(checkpoint, ema=False)
    strings = checkpoint / "config" / "_strings.json"
    text = strings.read_text()
    strings.write_text(text.replace("num_queries", "num_quests"))
    with pytest.raises(CheckpointError, match=r"checkpoints/2 is damaged: config/json differs from its checksum"):
        load_config(checkpoint)
    strings.write_text(text[:99])
    with pytest.raises(CheckpointError, match=r"its 'config' cannot be read"):
        load_config(checkpoint)


def test_restoring_other_parts_raises_an_error_with_step_and_folder(saved):
    with pytest.raises(CheckpointError, match=r"Checkpoint 2 in .*checkpoints does not fit"):
        restore_parts(saved[0] / "checkpoints" / "2", {"params": {"something": np.zeros(3)}})


def test_an_unfinished_save_is_ignored(saved):
    folder = saved[0]
    (folder / "checkpoints" / "3.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    assert find_checkpoint(folder).name == "2"
    assert newest_checkpoint(folder) == folder / "checkpoints" / "2"
    assert isinstance(load_config(folder), Config)
