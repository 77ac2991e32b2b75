"""The TensorBoard files of runs that were killed and resumed."""

import pytest

from detr_jax.training.board import Board, points


def _lines(rng, steps):
    return [{"step": step, "train/loss": float(rng.normal()), "val/AP": None if step % 2 else 0.5} for step in steps]


def _expected(lines):
    found = {}
    for line in lines:
        for name in ("train/loss", "val/AP"):
            if line[name] is not None:
                found.setdefault(name, set()).add(line["step"])
    return found


def _write(folder, kept, new=()):
    board = Board(folder, kept)
    for line in new:
        board.add(line["step"], line)
    board.close()


def test_points_that_a_killed_run_lost_are_written_at_the_next_start(tmp_path, rng):
    lines = _lines(rng, range(1, 40))
    _write(tmp_path, [], lines)
    [file] = tmp_path.iterdir()
    content = file.read_bytes()
    for length in rng.integers(0, len(content), 5).tolist():
        for other in tmp_path.iterdir():
            other.unlink()
        file.write_bytes(content[:length])  # what was written when the process was killed
        _write(tmp_path, lines[:30], lines[30:])
        assert points(tmp_path) == _expected(lines)


def test_points_of_steps_that_are_done_again_occur_once(tmp_path, rng):
    first, second = _lines(rng, range(1, 20)), _lines(rng, range(11, 25))
    _write(tmp_path, [], first)
    _write(tmp_path, first[:10], second[:5])
    _write(tmp_path, first[:10] + second[:5], second[5:])
    assert points(tmp_path) == _expected(first[:10] + second)


def test_a_start_without_a_loss_writes_nothing_again(tmp_path, rng):
    lines = _lines(rng, range(1, 20))
    _write(tmp_path, [], lines)
    before = set(tmp_path.iterdir())
    _write(tmp_path, lines)
    [new] = set(tmp_path.iterdir()) - before
    assert new.stat().st_size < 100
    assert points(tmp_path) == _expected(lines)


def test_tensorboard_reads_the_same_points(tmp_path, rng):
    """Its own reader, if it is installed, agrees about what is dropped."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first, second = _lines(rng, range(1, 20)), _lines(rng, range(11, 25))
    _write(tmp_path, [], first)
    _write(tmp_path, first[:10], second)
    read = accumulator.EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    for name, steps in _expected(first[:10] + second).items():
        assert [point.step for point in read.Scalars(name)] == sorted(steps)
