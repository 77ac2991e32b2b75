"""Damaged checkpoints are never used silently: every file of a checkpoint, flipped, cut and missing."""

import itertools
import json
import shutil
import threading
import time

import jax
import numpy as np
import pytest
from flax import nnx

from detr_jax.checkpoints import (
    CheckpointError,
    Checkpoints,
    DamagedCheckpointError,
    check_sound,
    checksums,
    find_checkpoint,
    has_part,
    load_class_names,
    load_config,
    load_model,
    parts,
)
from detr_jax.models import DETR
from detr_jax.testing import tiny_config


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a checkpoint of all parts, and the values of its model."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config()
    model = DETR(config.model, rngs=nnx.Rngs(0))
    values = nnx.as_pure(nnx.state(model))
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.class_names, checkpoints.category_ids = {0: "a", 1: "b"}, {0: 7, 1: 9}
    optimizer = {"count": np.array(3, np.int32), "mean": jax.tree.map(lambda x: 0.5 * x, values)}
    trees = {"params": values, "ema": jax.tree.map(lambda x: x + 1, values), "optimizer": optimizer}
    checkpoints.save(3, trees, config)
    checkpoints.close()
    return folder / "checkpoints" / "3", values


def copy_of(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "3")


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def read_all(checkpoint):
    """Everything that is read of a checkpoint, as comparable values."""
    check_sound(checkpoint)
    found = {}
    for ema in (False, True):
        model, _ = load_model(checkpoint, ema=ema)
        found[f"ema={ema}"] = [np.asarray(x) for x in jax.tree.leaves(nnx.as_pure(nnx.state(model)))]
    return found, load_config(checkpoint), load_class_names(checkpoint)


def same(one, other):
    arrays = all(
        np.array_equal(a, b, equal_nan=True)
        for name in one[0]
        for a, b in zip(one[0][name], other[0][name], strict=True)
    )
    return arrays and one[1:] == other[1:]


def test_a_sound_checkpoint_is_sound(saved):
    read_all(saved[0])


def test_no_flipped_bit_changes_what_is_read(saved, tmp_path, rng):
    """A flip is either refused, or in a place that nothing depends on."""
    expected = read_all(saved[0])
    refused = 0
    files = files_of(saved[0])
    for number in range(40):
        checkpoint = copy_of(saved, tmp_path / str(number))
        # most bytes are in a few files, and the small ones matter as well
        file = checkpoint / files[rng.integers(len(files))].relative_to(saved[0])
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)
        try:
            found = read_all(checkpoint)
        except CheckpointError:
            refused += 1
        else:
            assert same(found, expected), file
    assert refused


def test_no_flip_in_the_values_of_arrays_is_missed(saved, tmp_path, rng):
    for part in ("params", "ema", "optimizer"):
        checkpoint = copy_of(saved, tmp_path / part)
        largest = max((checkpoint / part).rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 16
        largest.write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=rf"{part}"):
            check_sound(checkpoint)


@pytest.mark.parametrize("part", ["params", "ema", "optimizer", "progress", "config", "classes", "checksums"])
def test_a_missing_part_is_named(saved, tmp_path, part):
    checkpoint = copy_of(saved, tmp_path)
    shutil.rmtree(checkpoint / part)
    with pytest.raises(CheckpointError, match=part):
        check_sound(checkpoint)
    if part in ("ema", "classes", "checksums", "config"):
        with pytest.raises(CheckpointError, match=part):
            read_all(checkpoint)
    if part == "ema":
        with pytest.raises(DamagedCheckpointError, match="'ema' is missing"):
            has_part(checkpoint, "ema")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_a_truncated_file_is_refused(saved, tmp_path, share):
    for part in ("params", "optimizer"):
        checkpoint = copy_of(saved, tmp_path / part)
        largest = max((checkpoint / part).rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
        content = largest.read_bytes()
        largest.write_bytes(content[: int(share * len(content))])
        with pytest.raises(DamagedCheckpointError, match=part):
            check_sound(checkpoint)


def test_a_checkpoint_under_another_step_is_refused(saved, tmp_path):
    moved = copy_of(saved, tmp_path).rename(tmp_path / "8")
    with pytest.raises(DamagedCheckpointError, match="it is of step 3"):
        check_sound(moved)


def test_parts_of_another_checkpoint_are_refused(saved, tmp_path):
    checkpoint = copy_of(saved, tmp_path)
    shutil.rmtree(checkpoint / "ema")
    shutil.copytree(checkpoint / "params", checkpoint / "ema")
    with pytest.raises(DamagedCheckpointError, match=r"ema/.* differs from its checksum"):
        load_model(checkpoint)


def test_checksums_depend_on_values_type_shape_and_place(rng):
    x = rng.normal(size=(4, 6)).astype(np.float32)
    base = checksums.of_tree({"a": x, "b": np.int32(3), "c": "text"})
    assert base == checksums.of_tree({"a": jax.numpy.asarray(x), "b": np.int32(3), "c": "text"})
    assert checksums.differing({"a": x, "b": np.int32(3), "c": "text"}, base) == []
    for other in (x.reshape(6, 4), x.astype(np.float64), np.asfortranarray(x)[::-1], x[:3]):
        assert checksums.of_tree({"a": other})["a"] != base["a"]
    assert checksums.of_tree({"a": np.asfortranarray(x)})["a"] == base["a"]
    assert checksums.differing({"a": x}, base) == ["b", "c"]


def test_a_sharded_array_has_the_checksum_of_the_whole(rng):
    from jax.sharding import NamedSharding, PartitionSpec

    from detr_jax.sharding import create_mesh

    x = rng.normal(size=(8, 5)).astype(np.float32)
    mesh = create_mesh(jax.devices()[:4])
    for spec in (PartitionSpec(), PartitionSpec("data")):
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        assert checksums.of_tree(placed) == checksums.of_tree(x)


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(saved, tmp_path, monkeypatch):
    """As if a run that keeps one checkpoint deleted the one that is being read."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved[0], folder / "3")
    load = parts.load_part

    def vanishing(checkpoint, part, target=None):
        if checkpoint.name == "3":
            shutil.rmtree(folder / "3")
            shutil.copytree(saved[0], folder / "4")
        return load(checkpoint, part, target)

    monkeypatch.setattr(parts, "load_part", vanishing)
    assert load_config(tmp_path) == tiny_config()
    assert find_checkpoint(tmp_path).name == "4"
    assert json.dumps(load_class_names(tmp_path)) == '{"0": "a", "1": "b"}'


def test_a_run_that_keeps_one_checkpoint_never_disturbs_a_reader(saved, tmp_path, rng):
    """About half of the reads meet a checkpoint that is deleted meanwhile."""
    load_model(saved[0])
    began = time.monotonic()
    load_model(saved[0])
    seconds = time.monotonic() - began
    folder, ended = tmp_path / "checkpoints", threading.Event()
    shutil.copytree(saved[0], folder / "0")

    def train():
        for step in itertools.count(1):
            if ended.wait(rng.uniform(0, 4 * seconds)):
                return
            shutil.copytree(saved[0], tmp_path / "unfinished")
            (tmp_path / "unfinished").rename(folder / str(step))
            shutil.rmtree(folder / str(step - 1))

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        for _ in range(6):
            model, config = load_model(tmp_path)
            assert config == tiny_config()
            assert load_class_names(tmp_path) == {0: "a", 1: "b"}
            for found, kept in zip(
                jax.tree.leaves(nnx.as_pure(nnx.state(model))), jax.tree.leaves(saved[1]), strict=True
            ):
                np.testing.assert_array_equal(found, kept + 1)  # the EMA
    finally:
        ended.set()
        trainer.join()
    assert int(find_checkpoint(tmp_path).name) > 1
