"""Kills trainings at random moments, restarts them, and compares their end with that of an undisturbed run.

Command::

    python tests/kill_anywhere.py [--kills 10] [--variants plain,workers,masks,scipy] [--seed N]

Each variant is trained once without a disturbance, and once with so many kills: the process group gets SIGKILL at a
moment that is drawn evenly from the length of the undisturbed run, so that it hits imports, compilations, steps, saves,
validations and the end. Nothing is repaired by hand in between. At the end

* parameters, EMA and optimizer state are equal bit for bit,
* metrics.jsonl has the same lines, none of them twice, torn or missing, and TensorBoard shows the same points,
* no process of the run is left, nothing is left in /dev/shm, and the next start finds no stale lock.

The last line is one JSON object with the figures. The exit code is 1 if anything differs.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

_CONFIG = """
import dataclasses
from detr_jax.config import *
from detr_jax.testing import tiny_config

def get_config():
    config = tiny_config()
    config.training.steps, config.training.checkpoint_every, config.training.log_every = 30, 4, 3
    config.evaluation.pictures, config.evaluation.snapshots = 2, 2
    {change}
    return config
"""
_CHANGES = {
    "plain": "pass",
    "workers": "config.data.num_workers = 2",
    "scipy": "config.loss.matcher = Matcher.SCIPY",
    "masks": """
    config.model = dataclasses.replace(config.model, masks=MaskHeadConfig())
    config.data.masks, config.loss.terms = True, mask_terms()
    config.evaluation.metrics["segm"] = CocoMask()
""",
}


def start(config: Path, workdir: Path, log: Path) -> subprocess.Popen:
    """A training in a process group of its own."""
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "--workdir", str(workdir)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=ROOT, start_new_session=True)


def left_over(workdir: Path) -> list[str]:
    """The processes whose command has the workdir."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(workdir) in command and int(folder.name) != os.getpid():
            found.append(command)
    return found


def shared_memory() -> set[str]:
    """The names in /dev/shm."""
    return {path.name for path in Path("/dev/shm").iterdir()} if Path("/dev/shm").is_dir() else set()


def arrays_of(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the newest checkpoint by path."""
    import jax
    from orbax.checkpoint import v1 as ocp

    from detr_jax.checkpoints import find_checkpoint

    trees = ocp.load_checkpointables(find_checkpoint(workdir), {"params": None, "ema": None, "optimizer": None})
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(trees)}


def lines_of(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times. A torn line raises an error."""
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("images_per_s", "compile_seconds", "programs")
    return [{name: value for name, value in line.items() if not name.endswith(timed)} for line in lines]


def run_variant(name: str, kills: int, folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    """Trains a variant undisturbed and disturbed, and compares both.

    Returns:
      The figures, with a list ``faults`` of sentences, which is empty if all is as it should be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, calm, struck = folder / f"{name}_config.py", folder / f"{name}_calm", folder / f"{name}_struck"
    config.write_text(_CONFIG.format(change=_CHANGES[name]))
    before = shared_memory()
    for workdir in (folder / f"{name}_first", calm):  # the second run finds compiled programs, as a restart does
        began = time.monotonic()
        if start(config, workdir, folder / f"{name}_calm.log").wait() != 0:
            return {"variant": name, "faults": [f"the undisturbed run failed: {tail(folder / f'{name}_calm.log')}"]}
    seconds = time.monotonic() - began
    faults: list[str] = []
    log = folder / f"{name}_struck.log"
    done, code, starts = 0, None, 0
    while code is None:
        starts += 1
        process = start(config, struck, log)
        try:
            code = process.wait(None if done >= kills else rng.uniform(0.0, 1.1 * seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
            time.sleep(0.3)
            if orphans := left_over(struck):
                faults.append(f"after kill {done} these processes are left: {orphans}")
        if code not in (None, 0):
            faults.append(f"start {starts} ended with exit code {code}: {tail(log)}")
        elif code == 0 and done < kills:
            code = None  # it was finished before it could be killed: a further start must find nothing to do
            if starts > 4 * kills + 8:
                break
    if left := shared_memory() - before:
        faults.append(f"left in /dev/shm: {sorted(left)}")
    ours, expected = arrays_of(struck), arrays_of(calm)
    different = [path for path in expected if not np.array_equal(ours.get(path), expected[path], equal_nan=True)]
    if different:
        faults.append(f"{len(different)} of {len(expected)} arrays differ, such as {different[0]}")
    if lines_of(struck) != lines_of(calm):
        faults.append("metrics.jsonl differs")
    from detr_jax.training.board import points

    if points(struck / "tensorboard") != points(calm / "tensorboard"):
        faults.append("the TensorBoard files have other points")
    if odd := [path.name for path in struck.rglob(".new-*")]:
        faults.append(f"unfinished files are left: {odd}")
    return {"variant": name, "kills": done, "starts": starts, "arrays": len(expected), "faults": faults}


def tail(log: Path) -> str:
    """The last lines of a log."""
    return " | ".join(log.read_text(errors="replace").splitlines()[-4:])


def main() -> int:
    """Runs the variants; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--variants", default=",".join(_CHANGES))
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(4), "little")
    rng, results = np.random.default_rng(seed), []
    with tempfile.TemporaryDirectory(prefix="kill_anywhere_") as folder:
        for name in arguments.variants.split(","):
            results.append(run_variant(name, arguments.kills, Path(folder), rng))
            print(json.dumps(results[-1]), flush=True)
    faults = sum(len(result["faults"]) for result in results)
    print(json.dumps({"seed": seed, "kills": sum(x.get("kills", 0) for x in results), "faults": faults}))
    return int(faults > 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
