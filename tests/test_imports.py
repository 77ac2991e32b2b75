"""What importing the package needs."""

import subprocess
import sys

WITHOUT = ("faster_coco_eval", "grain", "ml_collections", "tensorboardX", "tensorflow_datasets", "torch")

PROGRAM = """
import sys
sys.modules |= dict.fromkeys(sys.argv[1:])  # importing any of them fails
import detr_jax, detr_jax.inference, detr_jax.training.step
"""


def test_models_weights_and_steps_need_nothing_that_only_data_and_evaluation_use():
    subprocess.run([sys.executable, "-c", PROGRAM, *WITHOUT], check=True, timeout=120)
