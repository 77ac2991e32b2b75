"""The ``detr-jax`` command, run inside of the tests' process."""

from click.testing import CliRunner, Result

from detr_jax.cli import main


def run(*arguments: object) -> Result:
    """Runs ``detr-jax`` with these arguments; what ends it must be an exit code, never a traceback."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result
