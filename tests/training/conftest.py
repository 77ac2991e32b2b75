import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """optax mixes int32 counts with floats, which the strict promotion of the other tests forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield
