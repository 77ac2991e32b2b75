"""Ctrl-C in a command."""

import signal
import time

import pytest

from detr_jax.cli.interrupts import never_dropped


def _xla_gc_callback():
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_in_the_garbage_collection_is_raised_after_it():
    before = signal.getsignal(signal.SIGINT)
    with never_dropped():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        _xla_gc_callback()  # raises nothing there
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5)
    assert signal.getsignal(signal.SIGINT) == before
