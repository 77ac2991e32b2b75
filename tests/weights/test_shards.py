"""Sharded checkpoints: several files with an index, as Hugging Face writes large models."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from detr_jax.weights import WeightsError
from detr_jax.weights.files import read_file

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(rng, tmp_path):
    """A folder with random tensors in three files, and the tensors."""
    tensors = {f"part.{i}.weight": rng.normal(size=(i + 1, 2)).astype(np.float32) for i in range(7)}
    names = [f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
    where = {name: names[int(rng.integers(3)) if i > 2 else i] for i, name in enumerate(tensors)}
    for shard in names:
        save_file({name: tensors[name] for name, its in where.items() if its == shard}, tmp_path / shard)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return tmp_path, tensors, names


def write_index(folder, **changed):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= changed
    (folder / INDEX).write_text(json.dumps(index))


def test_all_tensors_come_from_their_shards(sharded):
    folder, tensors, _ = sharded
    for path in (folder, folder / INDEX):
        found = read_file(path).tensors
        assert found.keys() == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(found[name], value)


def test_the_error_names_missing_and_damaged_shards(sharded):
    folder, _, names = sharded
    (folder / names[1]).rename(folder / "away")
    (folder / names[2]).rename(folder / "away2")
    with pytest.raises(WeightsError, match=rf"lacks 2 of the 3 files of its checkpoint: .*{names[1]}"):
        read_file(folder)
    (folder / "away2").rename(folder / names[2])
    (folder / names[1]).write_bytes((folder / "away").read_bytes()[:40])
    with pytest.raises(WeightsError, match=rf"{names[1]} is damaged"):
        read_file(folder)


def test_the_error_names_shards_of_another_checkpoint(sharded, rng):
    folder, tensors, names = sharded
    save_file({"other.weight": np.zeros(3, np.float32)}, folder / names[0])
    with pytest.raises(WeightsError, match=rf"{names[0]} lacks \d tensors that {INDEX} lists, such as part\.0"):
        read_file(folder)
    save_file(tensors, folder / names[0])
    with pytest.raises(WeightsError, match=rf"{names[0]} holds \d tensors that {INDEX} does not expect there"):
        read_file(folder)


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "a/../../b.safetensors",
        "C:\\b.safetensors",
        "notes.txt",
        7,
        "",
    ],
)
def test_an_index_that_points_elsewhere_is_refused(sharded, shard):
    folder, _, _ = sharded
    save_file({"x": np.zeros(1, np.float32)}, folder.parent / "secret.safetensors")
    write_index(folder, x=shard)
    with pytest.raises(WeightsError, match=rf"{INDEX} is refused: it points to"):
        read_file(folder)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "[]", "{"])
def test_a_file_that_is_not_an_index_is_refused(sharded, content):
    (sharded[0] / INDEX).write_text(content)
    with pytest.raises(WeightsError, match=INDEX):
        read_file(sharded[0])


def test_the_error_for_a_single_shard_names_the_folder(sharded):
    folder, _, names = sharded
    with pytest.raises(WeightsError, match=rf"{names[0]} is one of several files of a checkpoint: give their folder"):
        read_file(folder / names[0])


def test_a_folder_with_files_of_other_names_lists_them(tmp_path):
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "epoch_12.safetensors")
    with pytest.raises(WeightsError, match=r"Give one of its files: epoch_12\.safetensors\."):
        read_file(tmp_path)
