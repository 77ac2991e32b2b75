"""PyTorch's own files: read without running what is in them, and refused clearly."""

import argparse
import json
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from detr_jax.weights import WeightsError, load_pretrained, read_pretrained
from detr_jax.weights.files import read_file
from tests.weights import framework_states as states
from tests.weights.conftest import load_fixture


@pytest.fixture(scope="module")
def weights():
    return load_fixture("bottleneck").weights


def as_torch(state):
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}


def assert_reads_as(path, state, tmp_path, **said):
    """The file gives the same parameters as the same tensors in a safetensors file."""
    save_file({name: np.ascontiguousarray(x) for name, x in state.items()}, tmp_path / "same.safetensors")
    found, expected = read_pretrained(path, **said), read_pretrained(tmp_path / "same.safetensors", **said)
    assert found.config == expected.config
    assert found.params.keys() == expected.params.keys()
    for name, value in expected.params.items():
        np.testing.assert_array_equal(found.params[name], value)
    return found


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_released_checkpoint_of_the_original(tmp_path, weights, zipped):
    state = states.facebook(weights)
    torch.save({"model": as_torch(state)}, tmp_path / "detr.pth", _use_new_zipfile_serialization=zipped)
    assert_reads_as(tmp_path / "detr.pth", state, tmp_path)


def test_a_training_checkpoint_of_the_original_tells_heads_and_dilation(tmp_path, weights):
    """It holds the command's arguments as a Namespace, which a plain safe load refuses."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    content = {
        "model": as_torch(states.facebook(weights)),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 200).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(nheads=4, dilation=True, lr=1e-4, masks=False, device="cuda"),
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    found = read_pretrained(tmp_path / "checkpoint.pth")
    assert found.config.num_heads == 4
    assert found.config.backbone.dilation
    assert read_pretrained(tmp_path / "checkpoint.pth", num_heads=2).config.num_heads == 2


@pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
@pytest.mark.parametrize("name", ["detectron2", "mmdetection", "torchvision"])
def test_other_frameworks_files(tmp_path, weights, name, wrapper):
    state = getattr(states, name)(weights)
    content = as_torch(state)
    torch.save({wrapper: content, "meta": {"epoch": 12}} if wrapper else content, tmp_path / "model.pth")
    assert assert_reads_as(tmp_path / "model.pth", state, tmp_path).kind == name


def test_a_hugging_face_folder_with_a_pytorch_file(tmp_path, weights):
    state = states.transformers4(weights)
    torch.save(as_torch(state), tmp_path / "pytorch_model.bin")
    assert assert_reads_as(tmp_path / "pytorch_model.bin", state, tmp_path).kind == "huggingface"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_floating_type_becomes_float32(tmp_path, weights, dtype):
    state = {name: value.to(dtype) for name, value in as_torch(states.facebook(weights)).items()}
    torch.save(state, tmp_path / "model.pth")
    found = read_pretrained(tmp_path / "model.pth")
    assert {value.dtype for value in found.params.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(found.params["class_head/bias"], state["class_embed.bias"].float().numpy())


def test_own_classes_of_mmdetection_are_not_taken_for_coco_s(tmp_path, weights):
    names = tuple(f"class {i}" for i in range(80))
    content = {"state_dict": as_torch(states.mmdetection(weights)), "meta": {"dataset_meta": {"classes": names}}}
    torch.save(content, tmp_path / "model.pth")
    found = read_pretrained(tmp_path / "model.pth")
    assert found.config.num_classes == 80
    assert found.class_names == dict(enumerate(names))


def test_a_training_checkpoint_of_mmdetection(tmp_path, weights):
    """Its record of losses is made of mmengine's own objects, which are passed over."""
    logging = pytest.importorskip("mmengine.logging", reason="pip install --no-deps -r tests/parity/mmdetection.txt")
    hub = logging.MessageHub.get_instance("test")
    for step in range(3):
        hub.update_scalar("train/loss", 1 / (1 + step))
        hub.update_info("iter", step)
    state = states.mmdetection(weights)
    content = {"meta": {"seed": 1}, "state_dict": as_torch(state), "message_hub": hub.state_dict()}
    torch.save(content, tmp_path / "epoch_3.pth")
    assert_reads_as(tmp_path / "epoch_3.pth", state, tmp_path)


def test_a_checkpoint_in_several_files(tmp_path, weights):
    state = states.transformers4(weights)
    names = list(state)
    where = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for shard in set(where.values()):
        torch.save(as_torch({name: state[name] for name in names if where[name] == shard}), tmp_path / shard)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    (tmp_path / "same").mkdir()
    assert assert_reads_as(tmp_path, state, tmp_path / "same").kind == "huggingface"
    (tmp_path / "pytorch_model-00002-of-00002.bin").write_bytes(b"PK")
    with pytest.raises(WeightsError, match=r"pytorch_model-00002-of-00002\.bin is damaged"):
        read_pretrained(tmp_path)


class AttributeDict(dict):
    """Lightning's settings of a model, a dictionary of its own class."""


AttributeDict.__module__, AttributeDict.__qualname__ = "lightning.fabric.utilities.data", "AttributeDict"


@pytest.mark.parametrize("prefix", ["model.", "detr.model."])
def test_a_training_checkpoint_of_lightning(tmp_path, weights, monkeypatch, prefix):
    """Its settings are of a class of its own, and its optimiser's state stands beside the tensors."""
    parts = AttributeDict.__module__.split(".")
    for depth in range(len(parts)):
        module = types.ModuleType(".".join(parts[: depth + 1]))
        module.AttributeDict = AttributeDict
        monkeypatch.setitem(sys.modules, module.__name__, module)
    state = states.facebook(weights)
    content = {
        "epoch": 3,
        "global_step": 30,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": as_torch({prefix + name: value for name, value in state.items()}),
        "hyper_parameters": AttributeDict(lr=1e-4, folder=Path("data")),
        "optimizer_states": [{"state": {0: {"step": torch.zeros(())}}}],
    }
    torch.save(content, tmp_path / "last.ckpt")
    assert assert_reads_as(tmp_path / "last.ckpt", state, tmp_path).kind == "facebook"


class FetchesAttribute:
    """A pickle of it asks for an attribute of a function that is allowed: the way to anything else."""

    def __reduce__(self):
        return getattr, (argparse.Namespace, "__init__")


def test_the_stand_ins_fetch_and_run_nothing(tmp_path, weights):
    torch.save({"model": as_torch(states.facebook(weights)), "extra": FetchesAttribute()}, tmp_path / "model.pth")
    extra = read_file(tmp_path / "model.pth").extras["extra"]
    assert type(extra).__name__ == "_Nothing"
    assert not callable(extra)


class RunsCode:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_not_run(tmp_path, weights, how):
    content = {"model": as_torch(states.facebook(weights)), "extra": RunsCode(tmp_path / "it_ran")}
    path = tmp_path / "model.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"extra": RunsCode(tmp_path / "it_ran")}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(WeightsError, match=r"model\.pth is refused: .*mkdir"):
        load_pretrained(path)
    assert not (tmp_path / "it_ran").exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(WeightsError, match=r"module\.pth is refused: .*torch\.nn.*Save only its state_dict\(\)"):
        load_pretrained(tmp_path / "module.pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_damaged(tmp_path, weights, zipped, kept):
    path = tmp_path / "model.pth"
    torch.save({"model": as_torch(states.facebook(weights))}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(WeightsError, match=r"model\.pth is damaged or not a PyTorch checkpoint"):
        load_pretrained(path)


@pytest.mark.parametrize(
    "content",
    [b"These are notes, and no weights at all.", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)],
    ids=["text", "picture", "zeros"],
)
def test_other_files_are_no_checkpoint(tmp_path, content):
    (tmp_path / "notes.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"notes\.pth is damaged or not a PyTorch checkpoint"):
        load_pretrained(tmp_path / "notes.pth")


@pytest.mark.parametrize(
    "content", [[1, 2], {"epoch": 3}, torch.zeros(3), {}], ids=["list", "no-tensors", "tensor", "empty"]
)
def test_files_without_tensors_by_name(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth is not a checkpoint of a model"):
        load_pretrained(tmp_path / "other.pth")
