"""Files that are not checkpoints raise one clear sentence (PyTorch's own files: tests/parity/test_torch_files.py)."""

import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from detr_jax.weights import WeightsError, load_pretrained, read_pretrained
from detr_jax.weights.files import read_file
from tests.weights import framework_states as states


@pytest.fixture
def checkpoint(bottleneck, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in states.facebook(bottleneck.weights).items()}, path)
    return path


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1], ids=lambda kept: f"kept-{kept}")
def test_a_truncated_file_is_damaged(checkpoint, kept):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged or not a safetensors file"):
        load_pretrained(checkpoint)


def test_a_text_file_is_refused(tmp_path):
    path = tmp_path / "notes.safetensors"
    path.write_text("These are notes, and no weights at all.")
    with pytest.raises(WeightsError, match=r"notes\.safetensors is damaged or not a safetensors file"):
        load_pretrained(path)


def test_the_error_names_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pth does not exist"):
        load_pretrained(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match=r"holds no checkpoint: a directory must have model\.safetensors or"):
        load_pretrained(tmp_path)
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"weights\.npz is of an unknown kind.*\.safetensors, \.pth"):
        load_pretrained(tmp_path / "weights.npz")


def test_the_error_names_a_damaged_config(checkpoint):
    checkpoint.with_name("config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json cannot be read as JSON"):
        load_pretrained(checkpoint)


def test_without_torch_the_error_for_its_files_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    (tmp_path / "detr.pth").write_bytes(b"PK")
    with pytest.raises(WeightsError, match=r"detr\.pth is a PyTorch file.*pip install 'detr_jax\[torch\]'"):
        load_pretrained(tmp_path / "detr.pth")


def test_safetensors_need_no_torch(monkeypatch, checkpoint):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert read_pretrained(checkpoint).kind == "facebook"


def test_the_file_in_a_folder_is_found(checkpoint):
    assert read_file(checkpoint.parent).source == checkpoint


def test_checkpoints_of_other_families_are_refused(tmp_path, bottleneck):
    path = tmp_path / "other.safetensors"
    save_file({"blocks.0.attn.qkv.weight": np.zeros((3, 3), np.float32)}, path)
    with pytest.raises(WeightsError, match=r"not a checkpoint of a known kind \(facebook.*blocks\.0\.attn"):
        load_pretrained(path)
    save_file({"pixel_decoder.layers.0.self_attn.sampling_offsets.weight": np.zeros((3, 3), np.float32)}, path)
    with pytest.raises(WeightsError, match=r"not a checkpoint of a known kind .*pixel_decoder"):
        load_pretrained(path)
    save_file({"transformer.decoder.layers.0.ca_qcontent_proj.weight": np.zeros((3, 3), np.float32)}, path)
    with pytest.raises(WeightsError, match="checkpoint of Conditional DETR"):
        load_pretrained(path)


def test_a_checkpoint_of_only_a_backbone_is_not_loaded_as_a_detector(tmp_path, bottleneck):
    path = tmp_path / "resnet.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in states.torchvision(bottleneck.weights).items()}, path)
    with pytest.raises(WeightsError, match="holds only a backbone"):
        load_pretrained(path)
