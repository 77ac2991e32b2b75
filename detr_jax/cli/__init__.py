"""The ``detr-jax`` command, the same program as ``python -m detr_jax``; one file for each group of subcommands."""

from typing import Any

import click

import detr_jax
from detr_jax.checkpoints import CheckpointError
from detr_jax.cli.buckets import buckets
from detr_jax.cli.data import check_data_command, make_shapes
from detr_jax.cli.evaluate import evaluate
from detr_jax.cli.export import export_command
from detr_jax.cli.output import STOPPED
from detr_jax.cli.plot import plot
from detr_jax.cli.predict import predict
from detr_jax.cli.train import train_command
from detr_jax.cli.weights import import_weights
from detr_jax.config import ConfigError
from detr_jax.data import DataError
from detr_jax.data.batching import LoaderError
from detr_jax.export import ExportError
from detr_jax.memory import OutOfMemoryError, does_not_fit, is_out_of_memory
from detr_jax.visualization.charts import MissingMatplotlib
from detr_jax.weights import WeightsError

_SENTENCES = (
    *(CheckpointError, ConfigError, DataError, ExportError, LoaderError),
    *(MissingMatplotlib, OutOfMemoryError, WeightsError),
)
"""Errors whose messages say what is wrong and what would be right."""


class _Sentences(click.Group):
    """Commands that end with a sentence where what they are given cannot be used (exit code 1), or after Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except _SENTENCES as error:
            raise click.ClickException(str(error)) from None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            what, advice = f"What detr-jax {ctx.invoked_subcommand} needs", "Use a machine with more memory."
            raise click.ClickException(does_not_fit(what, advice, error)) from None
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(STOPPED)


@click.group(cls=_Sentences, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
