"""Batches of worker processes leave no shared memory behind."""

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import itertools, sys
    from contextlib import closing
    from detr_jax.data import TrainPlan, ValPlan, batches, open_splits
    from detr_jax.testing import tiny_config

    def read(split):
        config = tiny_config()
        config.data.num_workers = 1
        train, val = open_splits(config)
        plans = {"train": (TrainPlan(train, config.data, 4, 0), train), "val": (ValPlan(val, config.data, 4), val)}
        plan, source = plans[split]
        stream = batches(plan, source, 4, config.data)
        with closing(stream):
            for batch in itertools.islice(stream, 4):
                assert batch.inputs.images.any()

    if __name__ == "__main__":
        read(sys.argv[1])
"""


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_program_that_ends_after_a_stream_reports_no_leaked_memory(tmp_path, split):
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    ended = subprocess.run(
        [sys.executable, tmp_path / "program.py", split], capture_output=True, text=True, check=True, timeout=300
    )
    assert "shared_memory" not in ended.stderr
