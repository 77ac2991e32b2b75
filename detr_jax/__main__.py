"""``python -m detr_jax`` is ``detr-jax``."""

from detr_jax.cli import main

main(prog_name="detr-jax")
