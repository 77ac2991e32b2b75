"""Steps that are not finite: the policies, the written batch, its replay, and spikes of the loss."""

import contextlib
import dataclasses
import io
import re
import shutil
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from orbax.checkpoint import v1 as ocp

from detr_jax.checkpoints import checkpoints_of
from detr_jax.cli import main
from detr_jax.config import LossTerm, from_json
from detr_jax.data import batches
from detr_jax.sharding import create_mesh
from detr_jax.testing import tiny_config
from detr_jax.training import loop
from detr_jax.training.error import TrainingError
from detr_jax.training.finiteness import TermsCheck
from detr_jax.training.loss_spikes import LossSpikes
from detr_jax.training.replay import replay
from detr_jax.training.resolve import resolve
from detr_jax.workdir import read_metrics

_STEP = 6  # the step that fails


@dataclasses.dataclass(kw_only=True)
class Trap(LossTerm):
    """Not finite for the one image whose first box has this center."""

    x: float = -1.0
    y: float = -1.0

    def compute(self, matched):
        centers = matched.targets.boxes[:, 0, :2]
        hit = (jnp.abs(centers - jnp.array([[self.x, self.y]], jnp.float32)) < 1e-6).all(-1).any()
        confidence = jnp.square(matched.predictions.logits).mean((1, 2, 3))
        return jnp.where(hit, jnp.inf, 1.0) * confidence / matched.num_images


def _config(mesh, *, trap=True, **training):
    """A tiny run of 8 steps, in which one image of step 6 is a trap.

    Returns:
      The configuration, the ids of the images of step 6, and the id of the one that is a trap.
    """
    config = tiny_config()
    config.training.steps, config.training.checkpoint_every, config.training.log_every = 8, 2, 4
    for name, value in training.items():
        setattr(config.training, name, value)
    config.evaluation.pictures = config.evaluation.snapshots = config.evaluation.every_epochs = 0
    config.loss.terms["trap"] = Trap(weight=0.1)
    resolved = resolve(config, Path("none"), mesh)
    stream = batches(resolved.plan, resolved.train_source, config.training.batch_size, config.data, start=_STEP - 1)
    batch = next(stream)
    stream.close()
    place = int(np.random.default_rng().choice(np.flatnonzero(batch.inputs.targets.count)))
    x, y = batch.inputs.targets.boxes[place, 0, :2].tolist()
    if trap:
        config.loss.terms["trap"] = Trap(weight=0.1, x=x, y=y)
    ids = batch.info.image_ids.tolist()
    return config, ids, ids[place]


@pytest.fixture(scope="module")
def stopped(one_device, tmp_path_factory):
    """The workdir of a run that stopped at step 6, its message, the ids of the step's images, and that of the trap."""
    config, ids, trap = _config(one_device)
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(TrainingError) as raised:
        loop.train(config, workdir, mesh=one_device)
    return workdir, str(raised.value), ids, trap


@pytest.fixture(scope="module")
def calm(one_device, tmp_path_factory):
    """The workdir of the same run without a trap."""
    workdir = tmp_path_factory.mktemp("calm") / "run"
    loop.train(_config(one_device, trap=False, log_every=1)[0], workdir, mesh=one_device)
    return workdir


_SKIP = {"on_nonfinite": "skip", "checkpoint_every": 1, "keep_checkpoints": 8, "log_every": 1}


@pytest.fixture(scope="module")
def skipped(one_device, tmp_path_factory):
    """The configuration and the workdir of a run that skipped the update of step 6, and what it printed."""
    config = _config(one_device, **_SKIP)[0]
    workdir = tmp_path_factory.mktemp("skipped") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        loop.train(config, workdir, mesh=one_device)
    return config, workdir, printed.getvalue()


def _trees(workdir, step):
    names = {"params": None, "ema": None, "optimizer": None}
    return [
        np.asarray(x) for x in jax.tree.leaves(ocp.load_checkpointables(workdir / "checkpoints" / str(step), names))
    ]


def _quiet(_):
    """Takes the sentences of a replay."""


def test_a_failed_step_is_written_and_its_replay_finds_the_image_and_the_term(stopped):
    workdir, message, ids, trap = stopped
    file = workdir / "nonfinite" / f"{_STEP}.npz"
    assert re.search(rf"The loss is \S+ at step {_STEP} \(also .*loss_trap.*\), for the images {ids[0]}, ", message)
    assert f"detr-jax replay {file}" in message
    assert [int(path.name) for path in checkpoints_of(workdir)] == [4, 2]
    found = replay(file, say=_quiet)
    assert (found.step, found.start) == (_STEP, 4), "from the newest checkpoint before the step"
    assert set(found.whole.wrong) >= {"loss", "loss_trap", "gradient_norm"}
    assert "loss_ce" not in found.whole.wrong
    assert list(found.images) == ids
    assert [image_id for image_id, alone in found.images.items() if alone.wrong] == [trap]
    assert found.whole.parameters
    assert not found.parameters


def test_the_command_says_what_is_at_fault_and_repeats_from_the_beginning_if_it_must(stopped, calm, tmp_path):
    workdir = shutil.copytree(stopped[0], tmp_path / "run", symlinks=True)
    shutil.rmtree(workdir / "checkpoints")
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != "lock"}
    result = CliRunner().invoke(main, ["replay", str(workdir / "nonfinite" / f"{_STEP}.npz")])
    assert result.exit_code == 0, result.output
    assert "repeating the steps 1 to 5" in result.output
    assert re.search(r"These terms are not finite: .*loss_trap", result.output)
    assert f"Alone, these images give values that are not finite: {stopped[3]}." in result.output
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "nothing of the run is changed"
    logged = next(line for line in read_metrics(calm) if line["step"] == _STEP)
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        [printed] = re.findall(rf" {name} (\S+)", result.output.splitlines()[1])
        assert float(printed) == pytest.approx(logged[f"train/{name}"], rel=1e-3)


def test_skip_leaves_the_state_and_goes_on(skipped):
    _, workdir, printed = skipped
    assert re.search(rf"at step {_STEP} .*, for the images .*The update was skipped", printed)
    before, after, later = (_trees(workdir, step) for step in (_STEP - 1, _STEP, _STEP + 1))
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x, y)
    assert any((x != y).any() for x, y in zip(after, later, strict=True))
    assert from_json((workdir / "config.json").read_text()).training.on_nonfinite == "skip"


def test_the_log_counts_skipped_updates(skipped):
    _, workdir, printed = skipped
    lines = [line for line in read_metrics(workdir) if "train/skipped_updates" in line]
    assert {line["step"]: line["train/skipped_updates"] for line in lines} == {
        step: float(step == _STEP) for step in range(1, 9)
    }
    assert [line["step"] for line in lines if "train/loss" not in line] == [_STEP], "no step of this line counts"
    assert f"step {_STEP}/8  loss none" in printed


def test_skip_on_many_devices_equals_one(skipped, tmp_path):
    """Sharded states are skipped in all parts."""
    config, workdir, _ = skipped
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, fsdp=True))
    loop.train(config, tmp_path / "many", mesh=create_mesh())
    assert (tmp_path / "many" / "nonfinite" / f"{_STEP}.npz").is_file()
    for x, y in zip(_trees(workdir, 8), _trees(tmp_path / "many", 8), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)


def test_a_run_of_sound_steps_is_the_same_with_skip(calm, one_device, tmp_path):
    loop.train(_config(one_device, trap=False, on_nonfinite="skip")[0], tmp_path / "run", mesh=one_device)
    for x, y in zip(_trees(calm, 8), _trees(tmp_path / "run", 8), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_the_number_of_skipped_updates_is_limited(one_device, tmp_path):
    config, *_ = _config(one_device, on_nonfinite="skip", max_skipped_updates=2)
    said = []
    check = TermsCheck(resolve(config, tmp_path, one_device), tmp_path, range(8), said.append)
    wrong = {"loss": np.float32(np.nan), "skipped_updates": np.float32(1)}
    sound = {"loss": np.float32(2), "skipped_updates": np.float32(0)}
    assert check.means([wrong, sound, wrong], 3) == {"loss": 2.0, "skipped_updates": 2.0}
    assert len(said) == 2
    with pytest.raises(
        TrainingError, match=r"2 updates were skipped before it, and training\.max_skipped_updates allows no more"
    ):
        check.means([sound, wrong], 5)


def test_files_that_are_no_batch_are_refused(stopped):
    good = stopped[0] / "nonfinite" / f"{_STEP}.npz"
    for name, content, message in (
        ("5.npz", b"no zip", "cannot be read as a batch"),
        ("4.npz", good.read_bytes()[:1000], "cannot be read as a batch"),
        ("99.npz", good.read_bytes(), "does not belong to the run"),
        ("x.npz", good.read_bytes(), "is no batch of a run"),
    ):
        (good.parent / name).write_bytes(content)
        with pytest.raises(TrainingError, match=message):
            replay(good.parent / name, say=_quiet)
    with pytest.raises(TrainingError, match="does not exist"):
        replay(good.parent / "3.npz", say=_quiet)
    np.savez(good.parent / "2.npz", rows=np.arange(8))
    result = CliRunner().invoke(main, ["replay", str(good.parent / "2.npz")])
    assert result.exit_code == 1
    assert "is no batch of a run" in result.output


def test_spikes_are_losses_far_above_the_median(rng):
    losses = rng.uniform(1, 2, 300)
    at = set(rng.choice(np.arange(20, 300), 6, replace=False).tolist())
    for place in at:
        losses[place] = rng.uniform(10, 20)
    spikes, found = LossSpikes(), {}
    for place, loss in enumerate(losses.tolist()):
        if ratio := spikes.add(loss):
            found[place] = ratio
    assert found.keys() == at
    for place, ratio in found.items():
        assert ratio == pytest.approx(losses[place] / statistics.median(losses[max(0, place - 100) : place]))
