"""Runs with several processes, on one host or several hosts.

Every process runs the same code on its own devices, and the devices of all processes form one mesh
(`detr_jax.sharding`). Each process reads only its own rows of a batch. Only process 0 writes logs and pictures. All
processes write checkpoints into a shared folder.
"""

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed as runtime  # jax has no public name for the key-value store of its processes
from jax.experimental import multihost_utils

from detr_jax.printing import printable
from detr_jax.wording import first_line

CONNECT_SECONDS = 300
"""Seconds that processes wait for each other at the start."""

_FAILURE = "detr_jax/failure"
_POLL_SECONDS = 0.5
_ending = threading.Lock()  # held by the thread that ends this process


class DistributedError(RuntimeError):
    """The processes could not connect. The message says what would be right."""


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = CONNECT_SECONDS,
) -> None:
    """Connects the processes of a run. Call it before anything else uses JAX's devices.

    Without arguments JAX finds the other processes itself on Cloud TPU, under Slurm, Open MPI and mpi4py, and in
    Kubernetes. On CPUs the processes communicate through gloo.

    If the others do not connect in time, this prints an error and exits with code 1, because
    `jax.distributed.initialize` cannot be interrupted.

    Args:
      coordinator: HOST:PORT of process 0. The port must be free on that host.
      num_processes: number of processes.
      process_id: number of this process, from 0 to ``num_processes`` - 1.
      timeout: seconds to wait for the other processes.

    Raises:
      DistributedError: an argument is wrong or missing, or the coordinator's address cannot be used.
    """
    _check(coordinator, num_processes, process_id)
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        _reserve(int(port)) if process_id == 0 else _reach(host, int(port), timeout)
    os.environ.setdefault("NPROC", str(max(32, os.cpu_count() or 1)))  # see detr_jax.matching.callbacks_may_starve
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM instead of the run
    given_up = threading.Timer(timeout, _give_up, [timeout])
    given_up.daemon = True
    given_up.start()
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=timeout + 60)
    except (ValueError, TypeError) as error:
        raise DistributedError(
            f"JAX did not find a known kind of cluster ({str(error).rstrip('.')}): give --coordinator=HOST:PORT, "
            "--num-processes=N and --process-id=I to each process."
        ) from None
    except RuntimeError as error:
        raise DistributedError(
            f"The processes could not connect ({first_line(error)[:200].rstrip('.')}): give each "
            "process its own --process-id, and all of them the same --coordinator and --num-processes."
        ) from None
    finally:
        given_up.cancel()
    threading.Thread(target=_watch, name="other processes", daemon=True).start()


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    host, colon, port = (coordinator or ":").rpartition(":")
    if coordinator is not None and not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise DistributedError(f"--coordinator={coordinator} must be HOST:PORT, such as 10.0.0.1:8476.")
    if num_processes is not None and num_processes < 1:
        raise DistributedError(f"--num-processes={num_processes} must be at least 1.")
    if process_id is not None and (process_id < 0 or (num_processes is not None and process_id >= num_processes)):
        last = "" if num_processes is None else f" to {num_processes - 1}, one for each of {num_processes} processes"
        raise DistributedError(f"--process-id={process_id} must be from 0{last or ' on'}.")
    if coordinator is not None and (num_processes is None or process_id is None):
        raise DistributedError("--coordinator also needs --num-processes=N and --process-id=I.")


def _reserve(port: int) -> None:
    """Checks that process 0 can listen on its port."""
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise DistributedError(
            f"Port {port} of --coordinator cannot be opened on this host ({os.strerror(error.errno or 0)}): choose a "
            "port that is free on the host of process 0."
        ) from None


def _reach(host: str, port: int, timeout: int) -> None:
    """Waits until process 0 listens on its port."""
    until = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise DistributedError(
                    f"The coordinator {host}:{port} could not be reached within {timeout} s ({error.strerror or error}"
                    "): check that process 0 runs there and that the port is open."
                ) from None
        time.sleep(_POLL_SECONDS)


def _give_up(timeout: int) -> None:
    state = runtime.global_state
    print(
        f"Error: Process {state.process_id} timed out after {timeout} s waiting for all {state.num_processes} "
        "processes to connect: start them together, each with its own --process-id.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def is_main() -> bool:
    """Whether this is process 0, which writes logs, pictures and other files that exist once per run."""
    return jax.process_index() == 0


def is_distributed() -> bool:
    """Whether this process is connected to other processes."""
    return bool(jax.distributed.is_initialized())


def wait_for_all(name: str) -> None:
    """Returns when every process has called this with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gathered(values: Any) -> np.ndarray:
    """Gathers arrays [...] of all processes in every process: [processes, ...]."""
    values = np.asarray(values)
    return np.asarray(multihost_utils.process_allgather(values)) if jax.process_count() > 1 else values[None]


def end_all(sentence: str, code: int, shown: str = "") -> NoReturn:
    """Ends this process and all others, even if they wait for it inside a collective.

    The others end through their `_watch` threads.

    Args:
      sentence: the reason, which all processes print.
      code: exit code of all processes.
      shown: text that this process prints instead of ``sentence``.
    """
    _ending.acquire()  # never released: errors that follow while the processes end are of no interest
    print(printable(shown or sentence), file=sys.stderr, flush=True)
    if (client := runtime.global_state.client) is not None:
        with suppress(RuntimeError):  # another process was faster
            client.key_value_set(_FAILURE, f"{code} {jax.process_index()} {sentence}")
        _linger()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a normal exit would wait in JAX for the other processes


def _watch() -> None:
    """Ends this process when another one reports a failure. JAX notices a killed process only after 100 s."""
    while (client := runtime.global_state.client) is not None:
        time.sleep(_POLL_SECONDS)
        try:
            code, process, sentence = client.key_value_try_get(_FAILURE).split(" ", 2)
        except RuntimeError:  # there is no failure, or process 0 is gone. JAX notices the latter itself
            continue
        time.sleep(_POLL_SECONDS)  # if this process fails as well, its own error is printed
        _ending.acquire()
        print(printable(f"Ended with process {process}: {sentence}"), file=sys.stderr, flush=True)
        _linger()
        os._exit(int(code))


def _linger() -> None:
    """Gives the other processes time to read the failure. Process 0, which stores it, ends last."""
    time.sleep(_POLL_SECONDS * (8 if is_main() else 3))
