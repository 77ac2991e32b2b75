"""JAX's compilation cache on disk, so that the next process does not compile the same functions again."""

import os
from pathlib import Path

import jax

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def default_folder() -> Path:
    """``detr_jax`` in the user's cache folder, which is ``$XDG_CACHE_HOME``, or ``~/.cache`` if that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detr_jax"


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent compilation cache in the user's cache folder.

    Nothing changes if the user has set the environment variable ``JAX_COMPILATION_CACHE_DIR`` (a folder, or empty for
    no cache) or JAX's own configuration. A folder that cannot be created is ignored.

    JAX caches functions that took a second or more to compile, but never functions with host callbacks. The training
    step with ``loss.matcher="scipy"`` is therefore compiled in every process.
    """
    if _VARIABLE in os.environ or jax.config.values.get("jax_compilation_cache_dir"):
        return
    try:
        folder = default_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that is read-only
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
