"""Several processes, on one host or many, that run one program together.

Every process runs the same code on its own devices, and all devices form one mesh (`detr_jax.sharding`). Each process
reads its own rows of a batch; the first one, process 0, alone writes logs and pictures; checkpoints are written by all
into a folder that all of them see.
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

CONNECT_SECONDS = 300
"""Seconds that processes wait for one another at the start."""

_FAILURE = "detr_jax/failure"
_POLL_SECONDS = 0.5
_ending = threading.Lock()  # held by the thread that ends this process


class DistributedError(RuntimeError):
    """Processes that did not come together; the message says what would be right."""


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = CONNECT_SECONDS,
) -> None:
    """Joins the processes of a run; to be called before anything else touches jax's devices.

    Without arguments jax itself finds the others: on Cloud TPU, under Slurm, Open MPI, MPI through mpi4py, and in
    Kubernetes. On CPUs they talk through gloo.

    Args:
      coordinator: HOST:PORT of process 0, with a port that is free there.
      num_processes: how many processes there are.
      process_id: which of them this is, from 0 on.
      timeout: seconds to wait for the others.

    Where others do not come, the process ends with a sentence and exit code 1: jax cannot give up in any other way.

    Raises:
      DistributedError: an argument is wrong or missing, or the coordinator's address cannot be used.
    """
    _check(coordinator, num_processes, process_id)
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        _reserve(int(port)) if process_id == 0 else _reach(host, int(port), timeout)
    os.environ.setdefault("NPROC", str(max(32, os.cpu_count() or 1)))  # see detr_jax.matching.callbacks_may_starve
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from the run
    given_up = threading.Timer(timeout, _give_up, [timeout])
    given_up.daemon = True
    given_up.start()
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=timeout + 60)
    except (ValueError, TypeError) as error:
        raise DistributedError(
            f"jax found no cluster here that it knows ({str(error).rstrip('.')}): give --coordinator=HOST:PORT, "
            "--num-processes=N and --process-id=I to each process."
        ) from None
    except RuntimeError as error:
        raise DistributedError(
            f"The processes could not come together ({str(error).strip().splitlines()[0][:200].rstrip('.')}): see that "
            "every id is given once, and the same --coordinator and --num-processes to all."
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
        raise DistributedError("--coordinator needs --num-processes=N and --process-id=I beside it.")


def _reserve(port: int) -> None:
    """Checks that process 0 can listen on its port."""
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise DistributedError(
            f"Port {port} of --coordinator cannot be listened on here ({os.strerror(error.errno or 0)}): choose one "
            "that is free on the host of process 0."
        ) from None


def _reach(host: str, port: int, timeout: int) -> None:
    """Waits until process 0 listens."""
    until = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise DistributedError(
                    f"The coordinator {host}:{port} could not be reached within {timeout} s ({error.strerror or error}"
                    "): see that process 0 runs there and that the port is open."
                ) from None
        time.sleep(_POLL_SECONDS)


def _give_up(timeout: int) -> None:
    state = runtime.global_state
    print(
        f"Error: The {state.num_processes} processes were not all there within {timeout} s, as process "
        f"{state.process_id} sees it: start them together, each with an id of its own.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def is_main() -> bool:
    """Whether this is process 0, which writes what is written once."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gathered(values: Any) -> np.ndarray:
    """Numbers of every process in all of them: an array of any shape with a first dimension more, the processes."""
    values = np.asarray(values)
    return np.asarray(multihost_utils.process_allgather(values)) if jax.process_count() > 1 else values[None]


def end_all(sentence: str, code: int, shown: str = "") -> NoReturn:
    """Ends this process, and through `_watch` all others, which may be waiting for it inside of a collective.

    Args:
      sentence: why, which the others say too.
      code: exit code of all.
      shown: what this process prints in place of the sentence.
    """
    _ending.acquire()  # for good: what fails while the others end this process is of no interest
    print(shown or sentence, file=sys.stderr, flush=True)
    if (client := runtime.global_state.client) is not None:
        with suppress(RuntimeError):  # another process was faster
            client.key_value_set(_FAILURE, f"{code} {jax.process_index()} {sentence}")
        _linger()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # jax would wait for the others on the way out


def _watch() -> None:
    """Ends this process when another one has failed. One that is killed is noticed by jax after 100 s."""
    while (client := runtime.global_state.client) is not None:
        time.sleep(_POLL_SECONDS)
        try:
            code, process, sentence = client.key_value_try_get(_FAILURE).split(" ", 2)
        except RuntimeError:  # nothing there, or process 0 is gone, which jax itself notices
            continue
        time.sleep(_POLL_SECONDS)  # for a failure of its own
        _ending.acquire()
        print(f"Ended with process {process}: {sentence}", file=sys.stderr, flush=True)
        _linger()
        os._exit(int(code))


def _linger() -> None:
    """Lets the others read what has failed before this process is missed, and process 0, which keeps it, end last."""
    time.sleep(_POLL_SECONDS * (8 if is_main() else 3))
