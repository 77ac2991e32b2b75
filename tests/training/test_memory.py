import math

import jax
import numpy as np
import pytest
from flax import nnx

from detr_jax.models import DETR
from detr_jax.testing import tiny_config
from detr_jax.training.memory import (
    StepMemory,
    kept_memory,
    largest_that_fits,
    memory_sentence,
    parse_memory,
    step_memory,
)


def test_the_memory_of_a_step_holds_state_batch_and_activations(one_device):
    config = tiny_config()
    config.model.decoder_layers = 1
    found = step_memory(config, (48, 64), 3, one_device)
    values = nnx.state(nnx.eval_shape(lambda: DETR(config.model, rngs=nnx.Rngs(0))), nnx.Param)
    parameters = 4 * sum(int(np.prod(x.shape)) for x in jax.tree.leaves(values))
    size = config.training.batch_size
    batch = size * (48 * 64 * 3 + 2 * 4 + 3 * 4 * 4 + 3 * 4 + 4)
    expected = 4 * parameters + batch  # parameters, their EMA, and two moments of AdamW
    assert expected <= found.state <= 1.1 * expected
    stem = size * 24 * 32 * config.model.backbone.width * 4  # float32
    assert stem < found.temporary < 1000 * stem
    assert found.total == found.state + found.temporary


@pytest.mark.parametrize("power", [0.8, 1.0, 1.3])
def test_the_largest_size_that_fits_is_found_in_few_calls(rng, power):
    for _ in range(20):
        most, limit = int(rng.integers(1, 500)), float(rng.uniform(1, 600))
        start, refused = float(rng.uniform(0, 50)), float(rng.choice([math.inf, limit * 1.2]))
        calls = []

        def needed(n, start=start, refused=refused, calls=calls):
            calls.append(n)
            need = start + n**power
            return math.inf if need > refused else need

        expected = max((n for n in range(1, most + 1) if start + n**power <= limit), default=0)
        assert largest_that_fits(needed, limit, most) == expected
        assert len(calls) == len(set(calls)) <= 25
        if power == 1 and refused == math.inf:
            assert len(calls) <= 12


def test_a_linear_need_takes_four_calls():
    calls = []
    assert largest_that_fits(lambda n: calls.append(n) or 3.5 + 1.7 * n, 100, 1000) == 56
    assert len(calls) == 4  # 1, 2, the guess, and the one above it


@pytest.mark.parametrize(
    ("text", "size"), [("80GiB", 80 * 2**30), ("24 GB", 24 * 10**9), ("1.5mib", 3 * 2**19), ("1000", 1000)]
)
def test_sizes_of_memory_are_read(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "80 gibs", "-3GB", "0"])
def test_a_text_that_is_not_a_size_of_memory_is_refused(text):
    with pytest.raises(ValueError, match="80GiB"):
        parse_memory(text)


def test_a_step_that_is_too_large_is_reported_with_advice():
    memory = StepMemory(state=2**30, temporary=3 * 2**30)
    fits = memory_sentence(memory, (800, 1088), 2**33)
    assert "800 x 1088, needs 4 GiB (1 GiB of state and batch, 3 GiB within the step) of the available 8 GiB" in fits
    assert "too much" not in fits + memory_sentence(memory, (800, 1088), None)
    assert "--largest-batch" in memory_sentence(memory, (800, 1088), 2**31)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_recomputed_part_of_the_model_reduces_the_memory_kept_for_the_backward_pass(dtype):
    def kept(remat):
        config = tiny_config()
        config.model.remat, config.model.dtype = remat, dtype
        return kept_memory(config, (64, 96))

    none, backbone, transformer, both = map(kept, ("none", "backbone", "transformer", "all"))
    assert max(backbone, transformer) < 0.9 * none
    assert both < 0.9 * min(backbone, transformer)
