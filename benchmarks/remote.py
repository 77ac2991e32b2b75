"""Torch's side in a process of its own, so that neither side's memory settings and threads are the other's."""

import multiprocessing
from multiprocessing.managers import BaseManager
from typing import Any


class _Processes(BaseManager):
    """Starts the process, and passes calls on to it."""


def _create(seed: int, kind: str) -> Any:
    from peer import Peer

    return Peer(seed, kind)


_Processes.register("Peer", _create, exposed=("save", "forwards", "steps", "run", "first_loss", "forget"))


def start(seed: int, kind: str = "detr") -> Any:
    """A `peer.Peer` in a new process, which ends with this one."""
    processes = _Processes(ctx=multiprocessing.get_context("spawn"))
    processes.start()
    peer = processes.Peer(seed, kind)  # type: ignore[attr-defined]
    peer.processes = processes  # it ends when this is collected
    return peer
