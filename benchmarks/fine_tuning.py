"""Fine-tuning against training from scratch: 100 drawn images of two kinds that the pretrained model never saw.

Usage: ``python benchmarks/fine_tuning.py --pretrained runs/shapes --json FILE``. The pretrained model is the one of
``python train.py --config configs/shapes.py``: circles, squares and triangles. Both runs take the same number of steps,
as many as this machine does in ``--seconds``, on the same 100 images of crosses and rings, one after the other, and are
judged on the same validation images; each has the learning rate of its own configuration.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import environment  # noqa: F401  (before jax)
from timing import cell

from configs import finetune, shapes
from detr_jax.checkpoints import find_checkpoint
from detr_jax.config import Config, EvaluationConfig, ShapesConfig
from detr_jax.training.loop import train

NEW_SHAPES = ShapesConfig(kinds=("cross", "ring"), train_images=100, val_images=500, seed=7)
FINE_TUNING_RATE = 3e-4  # a third of configs/shapes.py's, which is ten times the paper's


def scratch_config() -> Config:
    """The new kinds as configs/shapes.py trains the old ones."""
    config = shapes.get_config()
    config.model.num_classes = len(NEW_SHAPES.kinds)
    config.data.sources["shapes"] = NEW_SHAPES
    return config


def fine_tuning_config(pretrained: str) -> Config:
    """The new kinds as configs/finetune.py trains them, with the batch and images of configs/shapes.py."""
    config, scratch = finetune.get_config(), scratch_config()
    config.model.dropout = scratch.model.dropout
    config.data = scratch.data
    config.optimizer = dataclasses.replace(
        config.optimizer, learning_rate=FINE_TUNING_RATE, backbone_learning_rate=FINE_TUNING_RATE, frozen=()
    )
    config.training = dataclasses.replace(
        config.training, init_from=pretrained, batch_size=scratch.training.batch_size, ema_decay=0.99
    )
    return config


def run(config: Config, steps: int) -> dict[str, Any]:
    """Trains for a number of steps in a new folder; the metrics at the end and the seconds it took."""
    config.training = dataclasses.replace(config.training, steps=steps, early_stop=0, log_every=100)
    config.evaluation = EvaluationConfig(every_epochs=0, batch_size=50, pictures=0)
    with tempfile.TemporaryDirectory() as workdir:
        started = time.monotonic()
        metrics = train(config, workdir)
        return {"steps": steps, "seconds": time.monotonic() - started, **metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrained", default="runs/shapes", help="workdir or checkpoint to fine-tune")
    parser.add_argument(
        "--seconds", type=float, default=180, help="about how long each run takes, where --steps is not"
    )
    parser.add_argument("--steps", type=int, help="steps of each run")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()

    fine_tuned = fine_tuning_config(str(find_checkpoint(args.pretrained)))
    steps = args.steps
    if steps is None:
        few, more = (run(scratch_config(), trial)["seconds"] for trial in (20, 120))  # compilation is in both
        steps = max(1, int((args.seconds - few) * 100 / (more - few)))
    results: dict[str, Any] = {
        "scratch": run(scratch_config(), steps),
        "fine_tuned": run(fine_tuned, steps),
    }
    scratch = results["scratch"]["AP"]
    results["ratio"] = results["fine_tuned"]["AP"] / scratch if scratch > 0 else None
    for name in ("scratch", "fine_tuned"):
        row = results[name]
        print(f"{name:12} {steps} steps {row['seconds']:6.0f} s  AP {row['AP']:.3f}  AP50 {row['AP50']:.3f}")
    print(f"ratio of the APs: {cell(results['ratio'])}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
