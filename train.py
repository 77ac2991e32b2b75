"""Train DETR: ``python train.py --config configs/shapes.py [--workdir DIR] [--config.field=value ...]``.

This is the program ``detr-jax train``.
"""

from detr_jax.cli.train import train_command

if __name__ == "__main__":
    train_command(prog_name="python train.py")
