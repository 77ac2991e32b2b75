"""``python -m detr_jax`` is ``detr-jax``."""

from detr_jax.cli import main

if __name__ == "__main__":
    main(prog_name="detr-jax")
