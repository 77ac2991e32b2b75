"""Models and runs of strangers: small files that ask for much memory or time, run code, or hold other JSON.

See docs/security.md. The files of PyTorch are tested where PyTorch is installed.
"""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import yaml
from flax import nnx
from PIL import Image

from detr_jax.checkpoints import CheckpointError, Checkpoints, check_sound, load_class_names, load_config, load_model
from detr_jax.config import ConfigError, DamagedConfigError
from detr_jax.data import DataError
from detr_jax.evaluation.detections_file import read_detections
from detr_jax.models import DETR
from detr_jax.testing import tiny_config
from detr_jax.training.best_checkpoint import _read as read_best
from detr_jax.visualization import charts
from detr_jax.visualization.page import write_page
from detr_jax.weights import WeightsError
from detr_jax.weights.detectron2 import _read_yaml
from detr_jax.weights.files import read_file
from detr_jax.workdir import read_metrics, read_run_config
from tests.cli.command import run
from tests.test_reading_files import bomb

MUCH = 2**31 - 1
SECONDS = 240


@pytest.fixture(scope="module")
def config():
    return tiny_config()


@pytest.fixture(scope="module")
def values(config):
    return nnx.as_pure(nnx.state(DETR(config.model, rngs=nnx.Rngs(0))))


@pytest.fixture
def save(tmp_path, config, values):
    """Saves a checkpoint whose configuration has other fields of the model, and other parts."""

    def written(fields=None, **parts):
        fields = fields or {}
        backbone = dataclasses.replace(config.model.backbone, **fields.pop("backbone", {}))
        changed = dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=backbone, **fields))
        checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
        checkpoints._check_space = lambda trees: None  # it reads arrays only, and some of these parts are texts
        checkpoints.save(7, {"params": values, **parts}, changed)
        checkpoints.close()
        return tmp_path / "checkpoints" / "7"

    return written


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_queries": MUCH}, "the parameters of its configuration need 128 GiB"),
        ({"num_classes": MUCH}, "the parameters of its configuration need"),
        ({"hidden_dim": 2**30}, "the parameters of its configuration need"),
        ({"feedforward_dim": MUCH}, "the parameters of its configuration need"),
        ({"backbone": {"width": 2**30}}, "the parameters of its configuration need"),
        ({"encoder_layers": 199, "decoder_layers": 199}, r"a model of at least 40\d arrays, and it holds"),
        ({"encoder_layers": MUCH}, r"model\.encoder_layers=2147483647 is out of range"),
        ({"decoder_layers": MUCH}, r"model\.decoder_layers=2147483647 is out of range"),
        ({"backbone": {"blocks": (MUCH,)}}, "at most 200 blocks per stage"),
        ({"backbone": {"blocks": (1,) * 10**5}}, "one to four positive numbers"),
    ],
)
def test_a_configuration_of_a_huge_model_is_refused_before_anything_is_allocated(save, monkeypatch, fields, reason):
    checkpoint = save(fields)
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("memory was allocated"))
    with pytest.raises(CheckpointError, match=reason):
        load_model(checkpoint)


def test_arrays_that_need_more_memory_than_the_checkpoint_explains_are_refused(save):
    checkpoint = save(
        optimizer={"zeros": np.zeros(80 * 2**20, np.float32)}
    )  # 320 MiB, which compress to almost nothing
    with pytest.raises(CheckpointError, match=r"is refused: its arrays need 32\d MiB, and .* may stand for"):
        check_sound(checkpoint)
    with pytest.raises(CheckpointError, match="is refused: its arrays need"):
        load_config(checkpoint)


def test_a_checkpoint_of_the_right_size_is_read(save, config, values):
    checkpoint = save(optimizer={"zeros": np.zeros(2**20, np.float32)})
    assert load_model(checkpoint)[1] == config
    check_sound(checkpoint)


@pytest.mark.parametrize(
    "classes",
    [
        "[1]",
        "[" * 10**5,
        '{"a": "cat"}',
        '{"0": 5}',
        '{"0": ["cat"]}',
        "9" * 5000,
    ],
)
def test_other_json_in_a_checkpoint_is_a_sentence(save, monkeypatch, classes):
    checkpoint = save(classes={"json": classes})
    with pytest.raises(CheckpointError, match="is damaged: its 'classes'"):
        load_class_names(checkpoint)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"[" * 10**6,
        b'{"model":' * 10**5,
        b"[1]",
        b"5",
        b'{"model": 5}',
        b'{"model": {"num_queries": [[[]]]}}',
        b'{"data": {"sources": []}}',
        b'{"model": {"kind": 5}}',
        b'{"training": {"steps": ' + b"9" * 5000 + b"}}",
        b'{"data": {"train_short_sides": {"a": 1}}}',
    ],
)
def test_a_config_json_of_any_content_is_one_sentence(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json (is damaged|cannot be used)"):
        read_run_config(tmp_path)
    result = run("plot", tmp_path)
    assert result.exit_code == 1, result.output
    assert "config.json" in result.output


def test_a_config_json_that_is_a_pipe_or_a_folder_is_one_sentence(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(DamagedConfigError, match="it is a folder, not a regular file"):
        read_run_config(tmp_path)
    (tmp_path / "config.json").rmdir()
    os.mkfifo(tmp_path / "config.json")
    program = "import sys; from tests.cli.command import run; print(run('plot', sys.argv[1]).output)"
    command = [sys.executable, "-c", program, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert "it is a named pipe, not a regular file" in ended.stdout, ended.stderr


@pytest.mark.parametrize(
    "line",
    ["[]", "5", "null", "{}", '{"step": "1"}', '{"step": -1}', '{"step": true}', '{"step": 1, "val/AP": "x"}',
     '{"step": 1, "val/AP": {}}', '{"step": 1, "val/AP": ' + "9" * 400 + "}"],
)  # fmt: skip
def test_a_line_of_metrics_jsonl_with_something_else_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "val/AP": 0.5, "val/x": null}}\n{line}\n')
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is damaged: line 2 must be a JSON object with a step"):
        read_metrics(tmp_path)


def test_lines_of_metrics_jsonl_that_are_not_json_are_ignored(tmp_path):
    good = [{"step": 1, "val/AP": 0.5}, {"step": 2, "train/loss": float("inf")}]
    torn = [b"\xff\xfe", b"[" * 10**5, b'{"step": 3, "tr', b"\0" * 100, b""]
    lines = [json.dumps(good[0]).encode(), *torn, json.dumps(good[1]).encode()]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert read_metrics(tmp_path) == good


@pytest.mark.parametrize("content", [b"\xff", b"[" * 10**6, b"[]", b"{}", b'{"AP": 1, "step": 1e999, "last": 1}'])
def test_a_best_json_of_any_content_is_of_no_use(tmp_path, content):
    (tmp_path / "best.json").write_bytes(content)
    assert read_best(tmp_path / "best.json", "AP") is None
    (tmp_path / "best.json").write_text('{"step": 4, "AP": 0.5, "last": 6, "since": 1}')
    assert read_best(tmp_path / "best.json", "AP") == {"step": 4, "AP": 0.5, "last": 6, "since": 1}


def test_detections_that_unpack_to_gigabytes_are_refused(tmp_path):
    path = tmp_path / "detections.npz"
    header = tmp_path / "header.npy"
    np.save(header, np.zeros(0, np.float32))
    head = header.read_bytes().replace(b"(0,), }" + b" " * 8, b"(134217728,), }")
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("boxes.npy", "w", force_zip64=True) as part,
    ):
        part.write(head)
        for _ in range(32):
            part.write(bytes(2**24))
    assert path.stat().st_size < 2**20
    with pytest.raises(DataError, match=r"is not a file of detections \(its parts need 512 MiB"):
        read_detections(path)


def test_yaml_of_detectron2_whose_aliases_stand_for_too_much_is_refused(tmp_path):
    for merge in (False, True):
        (tmp_path / "config.yaml").write_text(bomb(40, 9, merge=merge))
        with pytest.raises(WeightsError, match=r"config\.yaml cannot be read as YAML \(its aliases"):
            _read_yaml(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("MODEL: {A: !!python/object/apply:os.system [exit]}")
    with pytest.raises(WeightsError, match="could not determine a constructor"):
        _read_yaml(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("MODEL: {A: [1, 2.5, x]}")
    assert _read_yaml(tmp_path / "config.yaml") == yaml.safe_load("MODEL: {A: [1, 2.5, x]}")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_a_view_that_repeats_few_numbers_is_refused_before_it_is_copied(tmp_path, torch):
    stored = torch.zeros(2**17)
    torch.save({"a": torch.as_strided(stored, (2**17, 2**18), (1, 0))}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"model\.pth is refused \(its tensors need 128 GiB"):
        read_file(tmp_path / "model.pth")
    torch.save({"model": {"a": torch.as_strided(stored, (2**10, 2**10), (1, 0))}}, tmp_path / "model.pth")
    assert read_file(tmp_path / "model.pth").tensors["a"].shape == (2**10, 2**10)


def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path, torch):
    torch.save({"a": torch.zeros(3)}, tmp_path / "small.pth")
    with (
        zipfile.ZipFile(tmp_path / "small.pth") as small,
        zipfile.ZipFile(tmp_path / "model.pth", "w", zipfile.ZIP_DEFLATED) as file,
    ):
        for member in small.infolist():
            file.writestr(member.filename, small.read(member))
        with file.open("small/data/1", "w", force_zip64=True) as part:
            for _ in range(64):
                part.write(bytes(2**23))
    with pytest.raises(WeightsError, match=r"model\.pth is refused \(its parts need 512 MiB"):
        read_file(tmp_path / "model.pth")


class _Runs:
    def __reduce__(self):
        return os.mkdir, (os.environ["MADE_BY_PICKLE"],)


def test_a_pickle_runs_no_code(tmp_path, monkeypatch, torch):
    monkeypatch.setenv("MADE_BY_PICKLE", str(tmp_path / "made"))
    torch.save({"model": {"a": torch.zeros(3)}, "x": _Runs()}, tmp_path / "archive.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": _Runs()}))
    for name in ("archive", "plain"):
        with pytest.raises(WeightsError, match=r"is refused|is damaged"):
            read_file(tmp_path / f"{name}.pth")
    assert not (tmp_path / "made").exists()


def test_tensors_of_other_layouts_and_a_dictionary_that_holds_itself_are_a_sentence(tmp_path, torch):
    content = {"sparse": torch.zeros(3, 3).to_sparse()}
    content["model"] = content
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="holds no named tensors"):
        read_file(tmp_path / "model.pth")


def test_weights_that_are_a_pipe_are_refused(tmp_path):
    for name in ("a.safetensors", "b.pth"):
        os.mkfifo(tmp_path / name)
    program = "import sys; from tests.cli.command import run; print(run('import-weights', *sys.argv[1:]).output)"
    for name in ("a.safetensors", "b.pth"):
        command = [sys.executable, "-c", program, str(tmp_path / name), str(tmp_path / "out")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        assert "it is a named pipe, not a regular file" in ended.stdout or "PyTorch is not installed" in ended.stdout


ESCAPE = "\x1b[2J\x1b]0;title\x07\x9b31m"


def test_a_prediction_prints_no_escape_sequence_of_a_file_or_a_class(save, tmp_path, rng):
    checkpoint = save(classes={"json": json.dumps({str(label): f"cat{label}{ESCAPE}" for label in range(5)})})
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(rng.integers(256, size=(40, 50, 3), dtype=np.uint8)).save(photos / f"good{ESCAPE}.png")
    (photos / f"bad{ESCAPE}.png").write_bytes(b"no image")
    for more in (["--threshold", 0], ["--classes", "dog"]):
        result = run("predict", checkpoint, photos, "--out", tmp_path / f"out{ESCAPE}", *more)
        assert result.exit_code == 1, result.output
        assert not set(result.output) & set("\x1b\x07\x9b"), result.output
        assert (r"bad\x1b[2J" if "--threshold" in more else r"cat0\x1b[2J") in result.output
    found = json.loads((tmp_path / f"out{ESCAPE}" / "predictions.json").read_text())
    assert found[0]["detections"][0]["name"].endswith(ESCAPE)


NAMES = ["$\\frac{$", "$", "a$_b$", "\x1b[31m", "\ud800", "_x", "two\nlines", "x" * 5000, "{x:g}", "%s", "\\", "<b>"]


def test_any_text_can_stand_in_a_chart(tmp_path, rng):
    for name in ("$\\frac{$", "".join(rng.choice(list("$\\{}_^%\x1b\n\ud800ab"), 20))):
        charts.bars(tmp_path / "bars.png", name, {**dict.fromkeys(NAMES, 0.5), name: 0.1}, x=name)
        curves = {one: ([1, 2], [i, 2]) for i, one in enumerate({*NAMES, name})}
        charts.lines(tmp_path / "lines.png", name, curves, x=name, y=name)
        charts.confusion_matrix(tmp_path / "matrix.png", name, np.ones((len(NAMES) + 1,) * 2, int), NAMES)
    assert all((tmp_path / f"{file}.png").stat().st_size for file in ("bars", "lines", "matrix"))


def test_a_report_shows_names_as_text(tmp_path):
    name = "<script>alert(1)</script>\x1b[2J\ud800\"' onload=x"
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"png")
    write_page(tmp_path / "index.html", name, name, {name: name}, {name: [(picture, name)]})
    text = (tmp_path / "index.html").read_text()
    assert "<script" not in text
    assert "\"' onload" not in text
    assert "\x1b" not in text
    assert text.count("&lt;script&gt;") == 8
