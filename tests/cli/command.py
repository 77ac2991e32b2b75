"""Run ``detr-jax`` in the process of the tests."""

from click.testing import CliRunner, Result

from detr_jax.cli import main


def run(*arguments: object) -> Result:
    """Runs ``detr-jax`` with these arguments. The command must end with an exit code, never with a traceback."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result
