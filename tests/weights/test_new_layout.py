"""A new family is one `Layout` object. Here it is defined outside of the package and given to the readers."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from detr_jax.models import DETR
from detr_jax.weights import LAYOUTS, WeightsError, load_pretrained, read_pretrained
from detr_jax.weights.detr_config import infer_detr
from detr_jax.weights.layout import Layout
from detr_jax.weights.metadata import Metadata
from detr_jax.weights.rules import CONVOLUTION, LINEAR, TABLE, VECTOR, Rule, linear, tied
from detr_jax.weights.trees import by_path

MARK = "shared_heads"
HEAD = "class_head"


def stored_name(path):
    """The name that the made-up framework gives to the tensor of one of our paths."""
    return "star." + path.replace("/", ".")


def transform_of(array):
    return {1: VECTOR, 2: LINEAR, 4: CONVOLUTION}[array.ndim]


def make_layout(params, marks=(MARK,)):
    """A layout for a model with these params, whose class head is stored once per decoder layer."""
    rules = []
    for path, array in params.items():
        if not path.startswith(HEAD):
            is_table = not path.endswith("/kernel") and array.ndim == 2
            rules.append(Rule(stored_name(path), (path,), TABLE if is_table else transform_of(array)))

    def read_metadata(file):
        return Metadata(num_heads=int(file.tensors["star.heads"][0]), short_side=400, max_long_side=600)

    def check(config):
        if config.num_classes > 50:
            yield "It has too many classes for a star."

    def finish(model, metadata):
        return dataclasses.replace(model, class_names={0: "star"}, notes=(*model.notes, "A star was read."))

    return Layout(
        kind="starry",
        rules=(*rules, *tied(linear(f"star.{MARK}.*", HEAD))),
        infer_config=infer_detr,
        marks=marks,
        ignored=r"star\.heads|star\.ca_qcontent_proj\..*",
        read_metadata=read_metadata,
        check=check,
        finish=finish,
    )


@pytest.fixture
def model(tiny_model, rngs):
    return DETR(tiny_model(num_heads=4, num_classes=7), rngs=rngs)


@pytest.fixture
def params(model, rng):
    """Random params by path."""
    tree = by_path(nnx.as_pure(nnx.state(model)))
    return {path: rng.uniform(0.1, 1, leaf.shape).astype(np.float32) for path, leaf in tree.items()}


@pytest.fixture
def state(params):
    """The made-up framework's tensors: transposed kernels, and three copies of the class head."""
    stored = {"star.heads": np.array([4])}
    for path, array in params.items():
        if path.endswith("/kernel"):
            array = array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)
        leaf = "weight" if path.endswith("kernel") else "bias"
        names = [f"star.{MARK}.{i}.{leaf}" for i in range(3)] if path.startswith(HEAD) else [stored_name(path)]
        stored |= {name: np.ascontiguousarray(array) for name in names}
    return stored


def save(folder, state):
    save_file(state, folder / "star.safetensors")
    return folder / "star.safetensors"


def test_a_layout_from_outside_is_recognised_and_every_hook_of_it_counts(tmp_path, params, state):
    weights = read_pretrained(save(tmp_path, state), layouts=(*LAYOUTS, make_layout(params)))
    assert weights.kind == "starry"
    assert weights.config.num_heads == 4
    assert weights.data.val_short_side == 400
    assert weights.class_names == {0: "star"}
    assert "A star was read." in weights.notes
    assert weights.params.keys() == params.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(weights.params[path], value, err_msg=path)


def test_a_layout_from_outside_loads_a_model_with_the_same_params(tmp_path, params, state):
    model = load_pretrained(save(tmp_path, state), layouts=(*LAYOUTS, make_layout(params)))
    loaded = by_path(nnx.as_pure(nnx.state(model)))
    assert loaded.keys() == params.keys()
    for path, value in params.items():
        assert isinstance(loaded[path], jax.Array)
        np.testing.assert_array_equal(loaded[path], value, err_msg=path)


def test_without_the_layout_the_file_is_refused(tmp_path, state):
    with pytest.raises(WeightsError, match="is not a checkpoint of a known kind"):
        read_pretrained(save(tmp_path, state))


def test_copies_of_a_tied_head_with_other_values_are_refused(tmp_path, params, state):
    state[f"star.{MARK}.2.bias"] = state[f"star.{MARK}.2.bias"] + 1
    with pytest.raises(WeightsError, match=rf"star\.{MARK}\.2\.bias has other values than star\.{MARK}\.0\.bias"):
        read_pretrained(save(tmp_path, state), layouts=(*LAYOUTS, make_layout(params)))


def test_a_fault_of_the_layout_s_check_ends_the_import(tmp_path, params, state):
    width = params[f"{HEAD}/kernel"].shape[0]
    for i in range(3):
        state[f"star.{MARK}.{i}.weight"] = np.ones((61, width), np.float32)
        state[f"star.{MARK}.{i}.bias"] = np.ones(61, np.float32)
    with pytest.raises(WeightsError, match="too many classes for a star"):
        read_pretrained(save(tmp_path, state), layouts=(*LAYOUTS, make_layout(params)))


def test_a_known_relative_is_read_only_by_a_layout_with_its_mark(tmp_path, params, state):
    state["star.ca_qcontent_proj.weight"] = np.zeros((3, 3), np.float32)
    path = save(tmp_path, state)
    with pytest.raises(WeightsError, match=r"Conditional DETR .*no layout for it is known"):
        read_pretrained(path, layouts=(*LAYOUTS, make_layout(params)))
    layout = make_layout(params, marks=(MARK, "ca_qcontent_proj"))
    assert read_pretrained(path, layouts=(*LAYOUTS, layout)).kind == "starry"
