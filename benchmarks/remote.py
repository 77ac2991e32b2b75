"""Torch's side in a process of its own, so that neither side's memory settings and threads are the other's."""

import multiprocessing
import os
from multiprocessing import util
from multiprocessing.managers import BaseManager
from typing import Any

import environment


class _Processes(BaseManager):
    """Starts the process, and passes calls on to it."""


def _create(seed: int, kind: str) -> Any:
    from peer import Peer

    return Peer(seed, kind)


def _prepare() -> None:
    """Runs in the new process before torch is imported."""
    environment.end_with_parent()
    # the last of the process's own exit steps: torch's threads may not survive the end of the interpreter
    util.Finalize(None, os._exit, args=(0,), exitpriority=-100)


_METHODS = ("save", "forwards", "steps", "run", "first_loss", "peak_memory", "forget")
_Processes.register("Peer", _create, exposed=_METHODS)


def start(seed: int, kind: str = "detr") -> Any:
    """A `peer.Peer` in a new process, which ends with this one."""
    processes = _Processes(ctx=multiprocessing.get_context("spawn"))
    os.environ.update(environment.for_child())
    processes.start(_prepare)
    peer = processes.Peer(seed, kind)  # type: ignore[attr-defined]
    peer.processes = processes  # it ends when this is collected
    return peer
