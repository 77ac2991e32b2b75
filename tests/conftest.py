"""Settings and fixtures of all tests. They must stand before the first import of jax."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"  # tests compile more than they run
    # a quarter less compilation; later versions do not know it
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jax").startswith("0.10."),
)
os.environ.setdefault("NPROC", "32")  # threads enough for host callbacks beside four simulated devices
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what one test compiled serves the others, in other processes too
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="detr_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx

from detr_jax.config import BackboneConfig, ModelConfig
from detr_jax.sharding import create_mesh

jax.config.update("jax_numpy_rank_promotion", "raise")  # catches accidental broadcasts
jax.config.update("jax_numpy_dtype_promotion", "strict")  # catches silent casts to float32

SEED = int(os.environ.get("TEST_SEED") or int.from_bytes(os.urandom(4), "little"))


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh random inputs in each run; the environment variable TEST_SEED repeats those of a failure."""
    print(f"TEST_SEED={SEED}")  # pytest shows it beside a failure
    return np.random.default_rng(SEED)


@pytest.fixture
def rngs(rng: np.random.Generator) -> nnx.Rngs:
    """Fresh random parameters in each run."""
    return nnx.Rngs(int(rng.integers(2**31)))


@pytest.fixture(scope="session")
def one_device() -> jax.sharding.Mesh:
    """A mesh of one of the simulated devices, for runs that need no more."""
    return create_mesh(jax.devices()[:1])


@pytest.fixture
def tiny_backbone() -> Callable[..., BackboneConfig]:
    """A factory of ResNets of three small stages; keywords override fields."""
    return lambda **fields: BackboneConfig(**{"blocks": (1, 1, 1), "width": 8, **fields})


@pytest.fixture
def tiny_model(tiny_backbone) -> Callable[..., ModelConfig]:
    """A factory of small detectors; keywords override fields."""
    defaults = {
        "num_classes": 5,
        "num_queries": 7,
        "hidden_dim": 32,
        "num_heads": 4,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "feedforward_dim": 48,
    }
    return lambda **fields: ModelConfig(**{"backbone": tiny_backbone(), **defaults, **fields})
