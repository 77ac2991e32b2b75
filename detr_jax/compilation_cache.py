"""Compiled programs kept on disk, so that the next process does not compile them again."""

import os
from pathlib import Path

import jax

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def default_folder() -> Path:
    """``detr_jax`` in the user's cache folder: ``$XDG_CACHE_HOME``, or ``~/.cache`` where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detr_jax"


def keep_compiled_programs() -> None:
    """Turns JAX's persistent compilation cache on, in the user's cache folder.

    Nothing changes where the user has decided: by the environment variable ``JAX_COMPILATION_CACHE_DIR`` (a folder, or
    empty for none) or by JAX's own configuration. JAX keeps what took a second or more to compile, and never programs
    that call back to the host, as the training step with ``loss.matcher="scipy"`` does: such a program holds the number
    of its callback, and the function itself is handed over when it is compiled, which JAX's cache does not do when it
    loads one. A folder that cannot be written is passed over.
    """
    if _VARIABLE in os.environ or jax.config.values.get("jax_compilation_cache_dir"):
        return
    try:
        folder = default_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or one that is read-only
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
