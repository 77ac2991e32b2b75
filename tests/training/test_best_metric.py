"""A run whose best checkpoint is chosen by a metric from outside of the package."""

import dataclasses
import json

import numpy as np

from detr_jax.config import MetricConfig
from detr_jax.testing import tiny_config
from detr_jax.training.loop import train
from detr_jax.training.run_log import RunLog


class ScoreEvaluator:
    def __init__(self):
        self.scores = []

    def add(self, image_ids, detections):
        self.scores.append(detections.scores)

    def compute(self):
        return {"mean": float(np.concatenate(self.scores).mean())}


@dataclasses.dataclass(kw_only=True)
class MeanScore(MetricConfig):
    numbers = ("mean",)

    def build(self, source):
        return ScoreEvaluator()


def test_the_best_checkpoint_and_the_log_follow_a_metric_from_outside(tmp_path, capsys):
    config = tiny_config()
    config.evaluation.metrics = {"score": MeanScore()}
    config.evaluation.best = "score_mean"
    config.evaluation.pictures = 0
    metrics = train(config, tmp_path)
    assert list(metrics) == ["score_mean"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["val/score_mean"] for line in lines if "val/score_mean" in line}
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["step"] == max(logged, key=logged.get)
    assert best["score_mean"] == max(logged.values())
    assert f"best score_mean {best['score_mean']:.3f} at step {best['step']}" in capsys.readouterr().out
    log = RunLog(tmp_path, 12, 12, config.training)
    assert log.validation_at(12) == metrics, "a resumed run reads its last validation from the log"
    log.close()
