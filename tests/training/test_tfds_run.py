"""A run on a data set of TFDS, from its records to the metrics."""

import sys

from detr_jax.config import DataConfig, ShapesConfig, TfdsConfig
from detr_jax.data.shapes import write_coco
from detr_jax.testing import tiny_config
from detr_jax.training.loop import train
from detr_jax.workdir import read_metrics
from tests.data.dataset_writers import TinyDetection


def test_a_tfds_data_set_is_trained_on_and_evaluated(tmp_path, rng, one_device):
    shapes = ShapesConfig(train_images=24, val_images=6, min_size=24, max_size=32, seed=int(rng.integers(2**31)))
    write_coco(shapes, tmp_path / "coco")
    names = ["circle", "square", "triangle"]
    TinyDetection(coco=tmp_path / "coco", names=names, data_dir=tmp_path / "tfds").download_and_prepare()

    config = tiny_config()
    config.data = DataConfig(
        **{
            **vars(config.data),
            "dataset": "tfds",
            "root": str(tmp_path / "tfds"),
            "sources": {"tfds": TfdsConfig(name="tiny_detection")},
            "train_split": "train[:20]",
        }
    )
    config.training.steps, config.training.log_every = 4, 2
    metrics = train(config, tmp_path / "run", mesh=one_device)
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4]
    (validation, *_) = [line for line in lines if line["step"] == 4 and "val/AP" in line]
    assert 0 <= metrics["AP"] == validation["val/AP"] <= 1
    assert metrics.keys() >= {f"AP/{name}" for name in names}
    assert (tmp_path / "run" / "predictions.png").exists()
    assert "tensorflow" not in sys.modules
