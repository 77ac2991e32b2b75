"""Data sets of strangers: files that block, grow, lead elsewhere, or hold text for the terminal. See docs/security.md.

Whatever could wait forever runs in another process with a time limit.
"""

import base64
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from detr_jax.config import CocoFiles, Config, DataConfig, YoloFiles
from detr_jax.data import CocoDataset, DataError, open_source
from detr_jax.data.coco import read_file
from detr_jax.data.images import decode, read_size
from detr_jax.data.labelme import LabelmeDataset
from detr_jax.data.voc import VocDataset
from detr_jax.data.yolo import YoloDataset
from tests.cli.command import run
from tests.test_reading_files import bomb

ROOT = Path(__file__).parents[1]
SECONDS = 240  # for a process with several commands, which takes a few of them

CALLS = """
import json, sys
from tests.cli.command import run
for call in json.loads(sys.argv[1]):
    result = run(*call)
    print(json.dumps([result.exit_code, result.output]), flush=True)
"""


def run_apart(*calls):
    """Exit code and output of calls of ``detr-jax`` in another process, which must end in time."""
    arguments = json.dumps([list(map(str, call)) for call in calls])
    ended = subprocess.run(
        [sys.executable, "-c", CALLS, arguments], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def picture(rng, path, size=(20, 30)):
    Image.fromarray(rng.integers(256, size=(*size, 3), dtype=np.uint8)).save(path)


def yolo(rng, root, *, names=("a", "b"), text=""):
    """A YOLO folder of two training images and a validation image."""
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
    for split, number in (("train", 2), ("val", 1)):
        for i in range(number):
            picture(rng, root / "images" / split / f"{i}.png")
            (root / "labels" / split / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.1 0.2\n")
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n{text}")
    return root


def coco(rng, root, names):
    """A COCO folder, whose annotations list these names. The images are written where the names lead."""
    (root / "train").mkdir(parents=True)
    form = {
        "images": [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
            for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (root / "train.json").write_text(json.dumps(form))
    for name in names:
        picture(rng, root / "train" / name)
    return root / "train", root / "train.json"


def test_files_that_are_not_regular_end_a_check_with_a_sentence(tmp_path, rng):
    roots = {name: yolo(rng, tmp_path / name) for name in ("image", "labels", "yaml", "list", "zero", "device")}
    replaced = {"image": "images/train/1.png", "labels": "labels/train/1.txt", "yaml": "data.yaml"}
    for name, file in replaced.items():
        (roots[name] / file).unlink()
        os.mkfifo(roots[name] / file)
    os.mkfifo(roots["list"] / "list.txt")
    for name, entry in (("list", "list.txt"), ("zero", "/dev/zero"), ("device", "zero.txt")):
        yaml = roots[name] / "data.yaml"
        yaml.write_text(yaml.read_text().replace("images/train", entry))
    (roots["device"] / "zero.txt").symlink_to("/dev/zero")  # a link may leave the folder, and is still no regular file
    (tmp_path / "json").mkdir()
    os.mkfifo(tmp_path / "json" / "instances_train.json")
    roots["json"] = tmp_path / "json"
    results = run_apart(
        *(["check-data", root] for root in roots.values()),
        ["check-data", roots["yaml"], "--config.data.sources.yolo.file=data.yaml"],
        ["check-data", roots["zero"], "--config.data.sources.yolo.allow_outside=True"],
    )
    for name, (code, output) in zip([*roots, "named yaml", "allowed zero"], results, strict=True):
        assert code == 1, (name, output)
    outputs = dict(zip([*roots, "named yaml", "allowed zero"], (output for _, output in results), strict=True))
    for name, reason in {
        "image": "1.png cannot be opened (it is a named pipe, not a regular file)",
        "labels": "1.txt cannot be read (it is a named pipe, not a regular file)",
        "named yaml": "data.yaml cannot be read as YAML (it is a named pipe, not a regular file)",
        "list": "list.txt cannot be read (it is a named pipe, not a regular file)",
        "device": "zero.txt cannot be read (it is a device, not a regular file)",
        "allowed zero": "/dev/zero cannot be read (it is a device, not a regular file)",
    }.items():
        assert reason in outputs[name], (name, outputs[name])


def test_an_image_that_is_a_pipe_ends_a_prediction_with_a_sentence(tmp_path):
    os.mkfifo(tmp_path / "photo.jpg")
    program = """
import sys
from pathlib import Path
from detr_jax.data.images import decode, read_size, open_image, is_dark, has_more_frames, orientation_matters
path = Path(sys.argv[1])
for read in (decode, read_size, lambda path: open_image(path, "")):
    try:
        read(path)
    except ValueError as error:
        print(error)
print(is_dark(path, 0), has_more_frames(path), orientation_matters(path, (1, 1)))
"""
    command = [sys.executable, "-c", program, str(tmp_path / "photo.jpg")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert ended.stdout.count("it is a named pipe, not a regular file") == 3, ended.stderr
    assert ended.stdout.splitlines()[-1] == "False False None"


def test_yaml_of_few_lines_that_stands_for_billions_of_values_is_refused(tmp_path, rng):
    root = yolo(rng, tmp_path / "data", text=bomb(30, 9))
    ((code, output),) = run_apart(["check-data", root])
    assert code == 1
    assert "data.yaml cannot be read as YAML (its aliases stand for more than" in output
    (root / "data.yaml").write_text("train: &a [*a]\nval: images/val\nnames: [a]\n")
    with pytest.raises(DataError, match="an alias stands for itself"):
        YoloDataset(root / "data.yaml", "train")


def test_aliases_that_stand_for_little_are_read(tmp_path, rng):
    root = yolo(rng, tmp_path)
    (root / "data.yaml").write_text("train: &folder images/train\nval: *folder\nnames: [a, b]\n")
    assert len(YoloDataset(root / "data.yaml", "val")) == 2


@pytest.mark.parametrize("kind", ["internal", "external", "parameter"])
def test_xml_with_entities_is_refused(tmp_path, rng, kind):
    secret = tmp_path / "secret.txt"
    secret.write_text("classified")
    levels = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    declared = {
        "internal": f'<!ENTITY a0 "x">{levels}<!ENTITY e "&a11;">',
        "external": f'<!ENTITY e SYSTEM "file://{secret}">',
        "parameter": f'<!ENTITY % e SYSTEM "file://{secret}"> %e;',
    }[kind]
    picture(rng, tmp_path / "0.png")
    (tmp_path / "0.xml").write_text(
        f"<?xml version='1.0'?><!DOCTYPE annotation [{declared}]>"
        "<annotation><object><name>&e;</name></object></annotation>"
    )
    with pytest.raises(DataError, match="defines entities, which are not supported") as error:
        VocDataset(tmp_path, ".")
    assert "classified" not in str(error.value)


@pytest.mark.parametrize("content", [b"[" * 10**6, b'{"images":' * 10**5, b'{"images": [], "x": ' + b"[" * 10**6])
def test_json_that_is_nested_deeply_is_a_sentence(tmp_path, rng, content):
    images, file = coco(rng, tmp_path / "data", ["a.png"])
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"train\.json (cannot be read as JSON|is not a panoptic)"):
        CocoDataset(images, file)
    (tmp_path / "data" / "train" / "a.json").write_bytes(b'{"shapes": ' + content)
    with pytest.raises(DataError, match="is not a labelme file"):
        LabelmeDataset(tmp_path / "data" / "train", "all")
    (tmp_path / "notes.json").write_bytes(content)
    with pytest.raises(DataError, match=r"class names .* cannot be read"):
        YoloDataset(tmp_path / "notes.json", "all")


def test_a_gzip_file_that_unpacks_to_gigabytes_is_refused(tmp_path):
    piece = gzip.compress(bytes(2**24))
    (tmp_path / "instances.json.gz").write_bytes(piece * 64)  # 1 GiB in 1 MiB
    with pytest.raises(DataError, match="it has more than 256 MiB when it is unpacked"):
        read_file(tmp_path / "instances.json.gz")


def test_an_image_of_more_pixels_than_the_limit_is_never_decoded(tmp_path, rng, monkeypatch):
    picture(rng, tmp_path / "a.png", (200, 300))
    (tmp_path / "labelme").mkdir()
    picture(rng, tmp_path / "labelme" / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 59_999)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match="200 x 300 pixels, which is more than the limit of 59999 pixels"):
        decode(tmp_path / "a.png")
    content = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    shape = {"label": "a", "points": [[0, 0], [9, 9]], "shape_type": "mask", "mask": content}
    (tmp_path / "labelme" / "a.json").write_text(json.dumps({"shapes": [shape], "imagePath": "a.png"}))
    with pytest.raises(DataError, match=r"a mask that is not a PNG file \(It has 200 x 300 pixels"):
        LabelmeDataset(tmp_path / "labelme", "all", masks=True)


def test_masks_of_an_image_with_too_many_pixels_are_dropped(tmp_path, rng):
    images, file = coco(rng, tmp_path / "data", ["a.png", "b.png"])
    form = json.loads(file.read_text())
    form["images"][0] |= {"height": 10**5, "width": 10**5}
    for one, pixels in zip(form["annotations"], (10**10, 600), strict=True):
        size = [10**5, 10**5] if pixels > 600 else [20, 30]
        one["segmentation"] = {"size": size, "counts": [0, pixels]}
    file.write_text(json.dumps(form))
    source = CocoDataset(images, file, masks=True)
    assert [len(source.objects(i).labels) for i in range(2)] == [0, 1]
    assert "masks of images that have more pixels than can be decoded were dropped: 1" in source.faults.sentences()[0]


def test_a_header_of_too_many_pixels_is_refused_where_sizes_are_read(tmp_path, rng, monkeypatch):
    root = yolo(rng, tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    with pytest.raises(DataError, match="20 x 30 pixels, which is more than the limit of 599 pixels"):
        YoloDataset(root / "data.yaml", "train")


@pytest.mark.parametrize("text", ["nc: 999999999", f"nc: {'9' * 5000}", f"names: {{{'9' * 1000}: a}}"])
def test_a_huge_number_of_classes_is_a_sentence(tmp_path, rng, text):
    root = yolo(rng, tmp_path)
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\n{text}\n")
    with pytest.raises(DataError, match=r"data\.yaml has (nc|names)=.* must be"):
        YoloDataset(root / "data.yaml", "train")


def test_a_file_with_the_content_of_another_format_starts_no_other_program(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    content = io.BytesIO()
    Image.fromarray(rng.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(content, "EPS")
    (tmp_path / "photo.jpg").write_bytes(content.getvalue())
    assert Image.open(tmp_path / "photo.jpg").format == "EPS"  # which Pillow hands to Ghostscript
    for read in (decode, read_size):
        with pytest.raises(DataError, match="the image format is not recognised"):
            read(tmp_path / "photo.jpg")


def names_outside(tmp_path):
    secret = tmp_path / "elsewhere" / "secret.png"
    return ["../../elsewhere/secret.png", str(secret), "x/../../../elsewhere/secret.png", "link/../secret.png"]


@pytest.mark.parametrize("number", range(4))
def test_an_image_outside_of_a_coco_folder_needs_a_flag(tmp_path, rng, number):
    (tmp_path / "elsewhere" / "inner").mkdir(parents=True)
    images = tmp_path / "data" / "train"
    for folder in (images, images / "x"):
        folder.mkdir(parents=True)
    (images / "link").symlink_to(tmp_path / "elsewhere" / "inner")
    name = names_outside(tmp_path)[number]
    images.rename(tmp_path / "kept")
    picture(rng, tmp_path / "elsewhere" / "secret.png")
    (tmp_path / "data").rmdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "kept").rename(images)
    picture(rng, images / "a.png")
    form = {
        "images": [{"id": i, "file_name": one, "height": 20, "width": 30} for i, one in enumerate(["a.png", name])],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "data" / "train.json").write_text(json.dumps(form))
    data = DataConfig(dataset="coco", root=str(tmp_path / "data"))
    with pytest.raises(DataError, match=r"is outside of .*: move it there, or set data\.sources\.coco\.allow_outside"):
        open_source(Config(data=data), "train")
    data.sources["coco"] = CocoFiles(allow_outside=True)
    source = open_source(Config(data=data), "train")
    assert source[1].image.shape == (20, 30, 3)


def test_names_in_a_data_set_and_links_out_of_it_are_read_without_a_flag(tmp_path, rng):
    (tmp_path / "elsewhere").mkdir()
    picture(rng, tmp_path / "elsewhere" / "b.png")
    images = tmp_path / "data" / "train"
    (tmp_path / "data" / "val").mkdir(parents=True)
    images.mkdir()
    picture(rng, tmp_path / "data" / "val" / "c.png")
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "b.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    names = ["linked/b.png", "b.png", "../val/c.png", str(tmp_path / "data" / "val" / "c.png")]
    form = {
        "images": [{"id": i, "file_name": one, "height": 20, "width": 30} for i, one in enumerate(names)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "data" / "train.json").write_text(json.dumps(form))
    source = open_source(Config(data=DataConfig(dataset="coco", root=str(tmp_path / "data"))), "train")
    assert all(source[i].image.shape == (20, 30, 3) for i in range(4))


@pytest.mark.parametrize("entry", ["folder", "absolute", "list", "list folder", "path", "names"])
def test_what_is_outside_of_a_yolo_folder_needs_a_flag(tmp_path, rng, entry):
    secret, root = tmp_path / "elsewhere", yolo(rng, tmp_path / "data")
    secret.mkdir()
    picture(rng, secret / "secret.png")
    (secret / "secret.txt").write_text("root\ndaemon\n")
    lines = {"list": f"{secret}/secret.png\n", "list folder": "../elsewhere/none.png\n../elsewhere/secret.png\n"}
    (root / "list.txt").write_text(lines.get(entry, ""))
    (root / "data.yaml").write_text(
        {
            "folder": "train: ../elsewhere\nval: images/val\nnames: [a, b]",
            "absolute": f"train: {secret}\nval: images/val\nnames: [a, b]",
            "path": f"path: {secret}\ntrain: .\nval: .\nnames: [a, b]",
            "names": f"train: images/train\nval: images/val\nnames: {secret}/secret.txt",
        }.get(entry, "train: list.txt\nval: images/val\nnames: [a, b]")
    )
    data = DataConfig(dataset="yolo", root=str(root))
    if entry == "path":  # "." is in the folder too, which is then read
        source = open_source(Config(data=data), "train")
        assert not any("secret" in source.file_name(i) for i in range(len(source)))
        assert any("paths that lead out of the data set were ignored" in one for one in source.faults.sentences())
        return
    with pytest.raises(DataError, match=r"outside of the data set in .*data\.sources\.yolo\.allow_outside=True"):
        open_source(Config(data=data), "train")
    data.sources["yolo"] = YoloFiles(allow_outside=True)
    source = open_source(Config(data=data), "train", strict=False)
    if entry == "names":
        assert source.categories == {0: "root", 1: "daemon"}
    else:
        assert any("secret.png" in source.file_name(i) for i in range(len(source)))


def test_a_list_of_voc_names_nothing_outside_of_its_folder(tmp_path, rng):
    (tmp_path / "elsewhere").mkdir()
    picture(rng, tmp_path / "elsewhere" / "secret.jpg")
    (tmp_path / "elsewhere" / "secret.xml").write_text("<annotation><object><name>secret</name></object></annotation>")
    root = tmp_path / "data"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    picture(rng, root / "JPEGImages" / "a.jpg")
    (root / "Annotations" / "a.xml").write_text("<annotation></annotation>")
    for name in ("../../elsewhere/secret", str(tmp_path / "elsewhere" / "secret")):
        (root / "ImageSets/Main/train.txt").write_text(f"a\n{name}\n")
        with pytest.raises(DataError, match=r"train\.txt lists .*, which must be in "):
            VocDataset(root, "train")


ESCAPE = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e"


def clean(output):
    return not any(character in output for character in "\x1b\x07\x9b\u202e")


def test_names_with_control_characters_are_printed_as_escapes(tmp_path, rng):
    root = yolo(rng, tmp_path / f"data{ESCAPE}")
    (root / "images" / "train" / f"bad{ESCAPE}.png").write_bytes(b"no image")
    (root / "images" / "train" / "bad\udcff.png").write_bytes(b"no image")
    (root / "labels" / "train" / "0.txt").write_bytes(f"0 0.5 0.5 0.2 {ESCAPE}\n".encode())
    result = run("check-data", root)
    assert result.exit_code == 1
    assert clean(result.output), result.output
    assert r"bad\x1b[2J" in result.output
    assert r"bad\xff.png" in result.output
    for arguments in (
        ["check-data", tmp_path / f"none{ESCAPE}"],
        ["predict", tmp_path / f"none{ESCAPE}", "a.png"],
        ["evaluate", f"none{ESCAPE}"],
        ["train", "--config", f"none{ESCAPE}"],
        ["plot", f"none{ESCAPE}"],
        [f"none{ESCAPE}"],
        [f"--none{ESCAPE}"],
    ):
        result = run(*arguments)
        assert result.exit_code, arguments
        assert clean(result.output), arguments
        assert r"\x1b" in result.output, (arguments, result.output)


def test_names_of_classes_with_control_characters_are_refused(tmp_path, rng):
    root = yolo(rng, tmp_path, names=(ESCAPE, "b"))
    result = run("check-data", root)
    assert result.exit_code == 1
    assert clean(result.output), result.output
    root = yolo(rng, tmp_path, names=("x" * 1001, "b"))
    with pytest.raises(DataError, match="plain text of at most 1000 characters"):
        YoloDataset(root / "data.yaml", "train")
