import re

import jax
import pytest

from detr_jax.config import Config, DataConfig, TrainingConfig
from detr_jax.data import ValPlan, open_source
from detr_jax.data.buckets import train_sizes, useful_share
from detr_jax.sharding import create_mesh
from detr_jax.training import memory
from detr_jax.training.resolve import resolve
from tests.cli.command import run


@pytest.fixture
def folder(tmp_path, rng):
    path = tmp_path / "shapes"
    seed = rng.integers(2**31)
    options = ("--train", 12, "--val", 5, "--seed", seed, "--min-size", 40, "--max-size", 90)
    assert run("make-shapes", path, *options).exit_code == 0
    return path


def test_the_training_run_uses_the_buckets_that_are_shown(folder, tmp_path):
    options = ("--config.data.num_train_buckets=5", "--config.data.num_val_buckets=2", "--config.training.epochs=4000")
    result = run("buckets", "--root", folder, *options)
    assert result.exit_code == 0, result.output
    config = Config(
        data=DataConfig(root=str(folder), num_train_buckets=5, num_val_buckets=2), training=TrainingConfig(epochs=4000)
    )
    resolved = resolve(config, tmp_path / "run", create_mesh())
    plans = resolved.plan, ValPlan(resolved.val_source, resolved.config.data, 8)
    shown = [tuple(map(int, sides)) for sides in re.findall(r"^ *(\d+) x (\d+) ", result.output, re.MULTILINE)]
    assert shown == [bucket for plan in plans for bucket in plan.buckets]
    assert len(plans[0].buckets) == 5
    useful = useful_share(train_sizes(resolved.train_source, config.data), plans[0].buckets)
    assert f"training, 12 images: {useful:.1%} useful in 5 buckets" in result.output
    assert "num_train_buckets" not in result.output
    shares = [float(share) for share in re.findall(r"\d +(\d+\.\d)%", result.output)]
    assert sum(shares) == pytest.approx(200, abs=1)


def test_a_short_run_gets_few_buckets_and_says_why(folder):
    result = run("buckets", "--root", folder, "--config.training.steps=20", "--config.training.batch_size=4")
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"^ *\d+ x \d+ ", result.output, re.MULTILINE)) == 2  # one for training, one for validation
    assert "data.num_train_buckets=12" in result.output
    assert "80 images" in result.output
    assert "data.num_val_buckets=6" in result.output
    assert "35 images" in result.output  # three steps per epoch: six validations of five images, and one at the end


def test_the_memory_of_each_training_bucket_is_shown(folder, monkeypatch):
    asked = []

    def recorded(config, bucket, max_objects, mesh):
        asked.append((bucket, max_objects))
        return memory.StepMemory(state=2**20, temporary=2**22)

    monkeypatch.setattr(memory, "step_memory", recorded)  # it compiles, as its own test does
    sizes = (
        f"--config.training.batch_size={4 * jax.device_count()}",
        f"--config.evaluation.batch_size={jax.device_count()}",
    )
    result = run("buckets", "--root", folder, "--memory", "--config.data.num_train_buckets=3", *sizes)
    assert result.exit_code == 0, result.output
    source = open_source(Config(data=DataConfig(root=str(folder))), "train")
    assert {objects for _, objects in asked} == {source.max_objects}
    for (height, width), _ in asked:
        assert re.search(rf"{height} x {width} +5 MiB: 1 of state and batch, 4 within the step", result.output)
    assert 1 <= len(asked) == result.output.count("MiB:") <= 3


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_largest_batch_that_fits_is_found(folder, monkeypatch, accumulate):
    asked = []

    def linear(config, bucket, max_objects, mesh):
        asked.append((config.training.batch_size, bucket))
        return memory.StepMemory(state=3 * 2**20, temporary=config.training.batch_size * 2**20)

    monkeypatch.setattr(memory, "step_memory", linear)
    unit = accumulate * jax.device_count()
    options = ("--largest-batch", f"--config.training.accumulate={accumulate}", "--config.training.batch_size=6")
    result = run("buckets", "--root", folder, *options, "--device-memory", f"{3.5 + 12 // unit * unit}MiB")
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"--config.training.batch_size={12 // unit * unit}\n")
    assert len(asked) <= 4
    assert len({bucket for _, bucket in asked}) == 1
    assert all(size % unit == 0 for size, _ in asked)

    result = run("buckets", "--root", folder, *options, "--device-memory", "1 MB")
    assert result.exit_code == 1
    assert f"Not even {unit} images fit" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--root", "nowhere"], "nowhere"),
        (["--config.data.num_train_buckets=0"], "data.num_train_buckets=0"),
        (["--config.data.num_buckets=3"], "data.num_buckets"),
        (["--memory", "--config.training.batch_size=63"], "training.batch_size=63"),
        (["--largest-batch"], "--device-memory 80GiB"),
        (["--largest-batch", "--device-memory", "much"], "'much' is not a size of memory"),
        (["--device-memory", "1GiB"], "--largest-batch"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(folder, arguments, words):
    if "--root" not in arguments:
        arguments = ["--root", folder, *arguments]
    result = run("buckets", *arguments)
    assert result.exit_code == (2 if "--device-memory" in arguments else 1)
    assert words in result.output
