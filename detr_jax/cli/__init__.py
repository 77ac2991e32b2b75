"""The ``detr-jax`` command, the same program as ``python -m detr_jax``; one file for each group of subcommands."""

import click

import detr_jax
from detr_jax.cli.buckets import buckets
from detr_jax.cli.data import check_data_command, make_shapes
from detr_jax.cli.export import export_command
from detr_jax.cli.plot import plot
from detr_jax.cli.run import evaluate, predict, train_command
from detr_jax.cli.weights import import_weights


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(detr_jax.__version__, prog_name="detr-jax")
def main() -> None:
    """DETR, end-to-end object detection with transformers, in JAX."""


main.add_command(train_command)
main.add_command(evaluate)
main.add_command(predict)
main.add_command(buckets)
main.add_command(export_command)
main.add_command(import_weights)
main.add_command(check_data_command)
main.add_command(make_shapes)
main.add_command(plot)
