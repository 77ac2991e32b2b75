"""Torch's side in a process of its own, so that neither side's memory settings and threads are the other's."""

import multiprocessing
import os
import threading
from multiprocessing.managers import BaseManager
from typing import Any


class _Processes(BaseManager):
    """Starts the process, and passes calls on to it."""


def _create(seed: int, kind: str) -> Any:
    from peer import Peer

    threading.Thread(target=_end_with_parent, daemon=True).start()
    return Peer(seed, kind)


def _end_with_parent() -> None:
    """Ends this process when the benchmark has ended in any way, by a signal for example."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


_METHODS = ("save", "forwards", "steps", "run", "first_loss", "peak_memory", "forget")
_Processes.register("Peer", _create, exposed=_METHODS)


def start(seed: int, kind: str = "detr") -> Any:
    """A `peer.Peer` in a new process, which ends with this one."""
    processes = _Processes(ctx=multiprocessing.get_context("spawn"))
    processes.start()
    peer = processes.Peer(seed, kind)  # type: ignore[attr-defined]
    peer.processes = processes  # it ends when this is collected
    return peer
