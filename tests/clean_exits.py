"""Starts every command again and again, and checks that each process ends cleanly.

Command::

    python tests/clean_exits.py [--starts 50] [--only NAME,...] [--seed N]

A clean end is: the expected exit code, nothing unexpected on stderr (such as the message of a crash while the
interpreter ends), no process left, and nothing left in /dev/shm. The commands are those of ``detr-jax``, also with
wrong input, and ``train.py``, also with worker processes and with SIGINT or SIGTERM to all its processes at a random
moment.

Training is slow. Its commands get a fifth of the starts. The last line is one JSON object with the figures. The exit
code is 1 if anything is not clean.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.own_shared_memory import OwnSharedMemory  # noqa: E402

_CONFIG = """
from detr_jax.config import Matcher
from detr_jax.testing import tiny_config

def get_config():
    config = tiny_config()
    config.training.steps, config.training.checkpoint_every, config.training.log_every = 8, 4, 4
    config.evaluation.pictures, config.evaluation.snapshots = 2, 2
    return config
"""
_LONGEST = 600  # seconds of one start
_SECONDS_LEFT = 5  # until a process of the group or its shared memory counts as left behind
_SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}


@dataclass
class Case:
    """A command to start, and how it must end.

    In the arguments, {folder} is the folder of the inputs, and {out} is a new folder for each start.
    """

    arguments: str
    code: int = 0
    stderr: str = ""
    """A regular expression for all that it may write to stderr."""
    signals: list[str] = field(default_factory=list)
    """Signals of which one is sent at a random moment. Exit code and stderr may then be those of the signal too."""
    slow: bool = False


CASES = {
    "version": Case("--version"),
    "help": Case("train --help"),
    "wrong option": Case("predict --treshold 1", 2, r"Usage(.|\n)*"),
    "make-shapes": Case("make-shapes {out} --train 4 --val 2", stderr=r"(drawing\n)+"),
    "check-data": Case("check-data {folder}/shapes --picture {out}.png", stderr=r"train\nval\n"),
    "check-data of nothing": Case("check-data {folder}/nothing", 1, r"Error: .*\n"),
    "buckets": Case("buckets --config {folder}/config.py"),
    "import-weights --list": Case("import-weights --list"),
    "import-weights of nothing": Case("import-weights {folder}/nothing.pth {out}", 1, r"Error: .*\n"),
    "evaluate": Case("evaluate {folder}/run", stderr=r"EMA of .*\nevaluating\n"),
    "predict": Case("predict {folder}/run {folder}/shapes/val2017 --out {out}", stderr=r"predicting\n"),
    "predict of nothing": Case(
        "predict {folder}/run {folder}/nothing.png --out {out}",
        1,
        r".* does not exist.\nThere is no image to predict.\n",
    ),
    "export": Case("export {folder}/run {out}"),
    "plot": Case("plot {folder}/run --out {out}", stderr=r"evaluating the detections of .*\n"),
    "train": Case("train --config {folder}/config.py --workdir {out}", slow=True),
    "train to its end again": Case("train --config {folder}/config.py --workdir {folder}/run"),
    "train with scipy": Case(
        "train --config {folder}/config.py --workdir {out} --config.loss.matcher=scipy", slow=True
    ),
    "train with workers": Case(
        "train --config {folder}/config.py --workdir {out} --config.data.num_workers=2", slow=True
    ),
    "train with a wrong field": Case("train --config {folder}/config.py --config.loss.matcher=best", 1, r".*\n"),
    "train with workers and a signal": Case(
        "train --config {folder}/config.py --workdir {out} --config.data.num_workers=2 --config.training.steps=60",
        stderr=r"(Stopped.*\n)?",
        signals=[*_SIGNALS],
        slow=True,
    ),
    "predict with a signal": Case(
        "predict {folder}/run {folder}/shapes/val2017 --out {out}",
        stderr=r"(predicting\n)?(Stopped.*\n)?",
        signals=["SIGINT"],
    ),
}


def command_of(case: Case, folder: Path, out: Path) -> list[str]:
    """The command of a case. Trainings are started with ``train.py``."""
    arguments = [part.format(folder=folder, out=out) for part in case.arguments.split()]
    if arguments[0] == "train" and "--help" not in arguments:
        return [sys.executable, str(ROOT / "train.py"), *arguments[1:]]
    return [sys.executable, "-m", "detr_jax", *arguments]


def one_device() -> dict[str, str]:
    """The environment of a process with one device of a CPU. Other flags of XLA, such as those of the tests, stay."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}


def start(command: list[str], memory: OwnSharedMemory) -> subprocess.Popen:
    """A process in a group of its own."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=memory.environment(one_device()),
        cwd=ROOT,
        start_new_session=True,
    )


def processes_of(group: int) -> list[str]:
    """The commands of the living processes of a group. On Linux only."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def run_case(case: Case, folder: Path, rng: np.random.Generator, usual: float) -> tuple[list[str], float]:
    """Starts a case once.

    Args:
      usual: seconds that it takes. A signal comes in this time.

    Returns:
      What is not clean, as sentences, and the seconds that it took.
    """
    memory, began, faults = OwnSharedMemory(folder), time.monotonic(), []
    out = Path(tempfile.mkdtemp(dir=folder)) / "out"
    process, codes, sent = start(command_of(case, folder, out), memory), [case.code], ""
    if case.signals:
        moment = rng.uniform(0.0, 1.1 * usual)
        name = str(rng.choice(case.signals))
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, _SIGNALS[name])
            codes += [128 + _SIGNALS[name], -_SIGNALS[name]]  # the same for a shell
            sent = f" after {name} at {moment:.1f} s of {usual:.1f} s"
    try:
        stdout, stderr = process.communicate(timeout=_LONGEST)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        faults.append(f"it did not end{sent}")
    seconds = time.monotonic() - began
    if process.returncode not in codes:
        faults.append(f"exit code {process.returncode} instead of {codes}{sent}: {stdout[-300:]!r} {stderr[-600:]!r}")
    elif not re.fullmatch(case.stderr, stderr):
        faults.append(f"stderr{sent}: {stderr[-900:]!r}")
    until = time.monotonic() + _SECONDS_LEFT
    while (processes_of(process.pid) or memory.left()) and time.monotonic() < until:
        time.sleep(0.05)
    if left := processes_of(process.pid):
        faults.append(f"processes are left{sent}: {left}")
        os.killpg(process.pid, signal.SIGKILL)
    if names := memory.left():
        faults.append(f"left in /dev/shm{sent}: {names}")
    return faults, seconds


def prepare(folder: Path) -> None:
    """Writes the inputs of the commands: a data set, a configuration, and a finished run."""
    (folder / "config.py").write_text(_CONFIG)
    cases = (
        "make-shapes {folder}/shapes --train 4 --val 2 --min-size 24 --max-size 32",
        CASES["train to its end again"].arguments,
    )
    for arguments in cases:
        process = start(command_of(Case(arguments), folder, folder), OwnSharedMemory(folder))
        _, stderr = process.communicate(timeout=_LONGEST)
        if process.returncode:
            raise RuntimeError(f"{arguments} ended with exit code {process.returncode}: {stderr}")


def usual_seconds(case: Case, folder: Path) -> float:
    """Seconds of a start without a signal, when its programs are compiled already."""
    undisturbed = Case(case.arguments)
    run_case(undisturbed, folder, np.random.default_rng(0), 0)
    return run_case(undisturbed, folder, np.random.default_rng(0), 0)[1]


def main() -> int:
    """Runs the cases; 1 if anything is not clean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--only", default=",".join(CASES), metavar="NAME,...")
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(4), "little")
    rng = np.random.default_rng(seed)
    total: dict[str, Any] = {"seed": seed, "starts": 0, "faults": 0}
    with tempfile.TemporaryDirectory(prefix="clean_exits_") as name:
        folder = Path(name)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        prepare(folder)
        for case_name in arguments.only.split(","):
            case = CASES[case_name]
            usual = usual_seconds(case, folder) if case.signals else 0.0
            starts = max(1, arguments.starts // 5) if case.slow else arguments.starts
            results = [run_case(case, folder, rng, usual) for _ in range(starts)]
            faults = [fault for found, _ in results for fault in found]
            seconds = float(np.median([taken for _, taken in results]))
            print(json.dumps({"case": case_name, "starts": starts, "seconds": round(seconds, 1), "faults": faults}))
            sys.stdout.flush()
            total["starts"] += starts
            total["faults"] += len(faults)
    print(json.dumps(total))
    return int(total["faults"] > 0)


if __name__ == "__main__":
    sys.exit(main())
