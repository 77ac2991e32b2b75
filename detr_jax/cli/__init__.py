"""The ``detr-jax`` command, which is the same program as ``python -m detr_jax``.

Each group of subcommands has one file, which is imported when a subcommand of it is called. These files import heavy
modules inside of the functions that need them. So --help and mistyped commands answer at once.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import click

import detr_jax
from detr_jax.cli.interrupts import end_quietly, never_dropped
from detr_jax.cli.output import STOPPED
from detr_jax.printing import printable, say

_ERRORS = {
    "detr_jax.checkpoints": "CheckpointError",
    "detr_jax.config": "ConfigError",
    "detr_jax.data.batching": "LoaderError",
    "detr_jax.data.source": "DataError",
    "detr_jax.export": "ExportError",
    "detr_jax.inference.attention": "AttentionError",
    "detr_jax.memory": "OutOfMemoryError",
    "detr_jax.training.error": "TrainingError",
    "detr_jax.visualization.charts": "MissingMatplotlib",
    "detr_jax.weights.files": "WeightsError",
    "detr_jax.workdir": "WorkdirError",
}
"""Errors whose message is a sentence for the user, by module. The modules are not imported here: only a module that is
imported already can have raised its error."""


class _Subcommand(click.Command):
    """A subcommand whose module ``detr_jax.cli.MODULE`` is imported when it is called or asked for help."""

    def __init__(self, name: str, module: str, function: str, short_help: str):
        super().__init__(name, short_help=short_help)
        self._module, self._function = module, function

    def load(self) -> click.Command:
        """The command itself."""
        command: click.Command = getattr(importlib.import_module(f"detr_jax.cli.{self._module}"), self._function)
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        return self.load().make_context(info_name, args, parent, **extra)


class _Sentences(click.Group):
    """A group whose commands end with a sentence if their input cannot be used (exit code 1), or after Ctrl-C."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _printable_errors():
            return super().make_context(*args, **extra)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        finally:
            end_quietly()

    def invoke(self, ctx: click.Context) -> Any:
        with _printable_errors():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            with never_dropped():
                return super().invoke(ctx)
        except Exception as error:
            raise click.ClickException(_sentence(error, ctx.invoked_subcommand)) from None
        except KeyboardInterrupt:
            say("Stopped.", err=True)
            ctx.exit(STOPPED)


@contextlib.contextmanager
def _printable_errors() -> Iterator[None]:
    """Errors that click prints, with control characters as escapes."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = printable(error.message)
        raise


def _sentence(error: Exception, subcommand: str | None) -> str:
    """The message for the user about an error. Errors that the user cannot correct are raised again."""
    if any(
        isinstance(error, getattr(sys.modules[module], name, ()))
        for module, name in _ERRORS.items()
        if module in sys.modules
    ):
        return str(error)
    from detr_jax.memory import does_not_fit, is_out_of_memory

    if is_out_of_memory(error):
        return does_not_fit(f"What detr-jax {subcommand} needs", "Use a machine with more memory.", error)
    raise error


@click.group(cls=_Sentences, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(detr_jax.__version__, prog_name="detr-jax")
@click.option(
    "--import",
    "files",
    type=click.Path(exists=True, dir_okay=False),
    multiple=True,
    help="Run this Python file first. Needed if a checkpoint's configuration holds classes that the file defines.",
)
def main(files: tuple[str, ...]) -> None:
    """DETR, end-to-end object detection with transformers, in JAX."""
    if files:
        from detr_jax.cli.configuration import run_as_module

        for file in files:
            run_as_module(file)


for _command in (
    _Subcommand("train", "train", "train_command", "Train a model, or continue a run."),
    _Subcommand("evaluate", "evaluate", "evaluate", "COCO metrics of a checkpoint."),
    _Subcommand("predict", "predict", "predict", "Find objects in images."),
    _Subcommand("buckets", "buckets", "buckets", "Show the buckets of a data set and their memory."),
    _Subcommand("export", "export", "export_command", "StableHLO that runs without this package."),
    _Subcommand("import-weights", "weights", "import_weights", "A checkpoint from PyTorch weights or a listed name."),
    _Subcommand("check-data", "data", "check_data_command", "Check a data set."),
    _Subcommand("make-shapes", "data", "make_shapes", "Write a COCO folder of drawn shapes."),
    _Subcommand("replay", "replay", "replay_command", "Repeat a step that was not finite."),
    _Subcommand("plot", "plot", "plot", "Report, animation, attention."),
):
    main.add_command(_command)
