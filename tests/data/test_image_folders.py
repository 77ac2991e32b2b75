"""Every file in a folder is read or counted."""

import os

import pytest
from PIL import Image, features

from detr_jax.data import DataError, YoloDataset
from detr_jax.data.image_folders import count_unread, image_suffixes, images_in, list_folder, subfolder
from detr_jax.data.source import Faults


def _image(path, size=(40, 30), kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, kind)


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")


def test_files_are_sorted_by_the_components_of_their_paths(tmp_path):
    _touch(tmp_path, "b.jpg", "a/z.jpg", "a-b/c.jpg", "a/b/d.jpg", "a.jpg")
    assert list_folder(tmp_path).files == ["a/b/d.jpg", "a/z.jpg", "a-b/c.jpg", "a.jpg", "b.jpg"]
    assert list_folder(tmp_path, below=False).files == ["a.jpg", "b.jpg"]


def test_links_are_followed_once_also_in_a_circle(tmp_path):
    _touch(tmp_path, "root/a/1.jpg", "store/2.jpg", "store/deep/3.jpg")
    root = tmp_path / "root"
    os.symlink(tmp_path / "store", root / "b")
    os.symlink(root, root / "a" / "circle")
    os.symlink("a", root / "0_again")
    os.symlink(root / "a" / "1.jpg", root / "same.jpg")
    os.symlink(tmp_path / "store" / "deep" / "3.jpg", root / "3 again.jpg")
    os.symlink(tmp_path / "gone.jpg", root / "gone.jpg")
    folder = list_folder(root)
    assert folder.files == ["a/1.jpg", "b/2.jpg", "b/deep/3.jpg", "gone.jpg"]
    assert sorted(os.path.relpath(path, root) for path in folder.duplicates) == [
        "0_again", "3 again.jpg", "a/circle", "same.jpg",
    ]  # fmt: skip
    faults = Faults("it")
    count_unread([folder], faults)
    assert list(faults.counts.values()) == [4]


def test_files_of_operating_systems_are_ignored_and_counted(tmp_path):
    _touch(
        tmp_path, "a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "__MACOSX/a.jpg", ".ipynb_checkpoints/a.jpg", "notes"
    )
    folder = list_folder(tmp_path)
    assert images_in(folder) == ["a.jpg"]
    faults = Faults("it")
    count_unread([folder], faults)
    assert list(faults.counts.values()) == [5]
    assert "Thumbs.db" in faults.sentences()[0]


def test_images_of_formats_that_pillow_does_not_read_are_counted(tmp_path):
    _touch(tmp_path, "a.HEIC", "b.cr2", "c.svg", "d.txt", "e.pdf")
    folder = list_folder(tmp_path)
    assert images_in(folder) == []
    faults = Faults("it")
    count_unread([folder], faults)
    assert list(faults.counts.values()) == [4]


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("jpg", "JPEG"), ("JPEG", "JPEG"), ("jpe", "JPEG"), ("jfif", "JPEG"), ("Png", "PNG"), ("gif", "GIF"),
        ("bmp", "BMP"), ("tif", "TIFF"), ("tiff", "TIFF"), ("webp", "WEBP"), ("jp2", "JPEG2000"), ("avif", "AVIF"),
    ],
)  # fmt: skip
def test_every_image_format_that_pillow_reads_is_read_with_its_labels(tmp_path, suffix, kind):
    if suffix in ("avif", "jp2") and not features.check({"avif": "avif", "jp2": "jpg_2000"}[suffix]):
        assert f".{suffix}" not in image_suffixes()
        return
    _image(tmp_path / "images" / f"a.{suffix}", kind=kind)
    _touch(tmp_path, "labels/a.TXT")
    (tmp_path / "labels" / "a.TXT").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    source = YoloDataset(tmp_path / "data.yaml", "train")
    assert source[0].objects.boxes.tolist() == [[10, 7.5, 30, 22.5]]
    assert source[0].image.shape == (30, 40, 3)


def test_a_sub_folder_is_found_in_any_case_and_the_exact_case_comes_first(tmp_path):
    _touch(tmp_path, "Labels/a", "other/a", "labeltxt")
    assert subfolder(tmp_path, "labels", "other") == tmp_path / "Labels"
    assert subfolder(tmp_path, "labelTxt") is None
    assert subfolder(tmp_path / "gone", "labels") is None
    _touch(tmp_path, "labels/a")
    assert subfolder(tmp_path, "labels") == tmp_path / "labels"


LABELS = "0 0.5 0.5 0.5 0.5\n"


@pytest.fixture
def root(tmp_path):
    """Three images in images/, each with a label file in labels/."""
    for name in ("a", "b", "c"):
        _image(tmp_path / "images" / f"{name}.jpg")
        _touch(tmp_path, f"labels/{name}.txt")
        (tmp_path / "labels" / f"{name}.txt").write_text(LABELS)
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    return tmp_path


def _objects(root):
    source = YoloDataset(root / "data.yaml", "train")
    return sum(len(source.objects(index).labels) for index in range(len(source))), source.faults.counts


@pytest.mark.parametrize("name", ["Labels", "LABELS", "labelTxt", "label", "annotations", "images", "images/labels"])
def test_labels_are_found_in_folders_with_other_names(root, name):
    for path in sorted((root / "labels").iterdir()):
        (root / name).mkdir(exist_ok=True, parents=True)
        path.rename(root / name / path.name)
    (root / "labels").rmdir()
    assert _objects(root) == (3, {})


def test_a_label_folder_may_replace_any_folder_below_the_root(root):
    (root / "images").rename(root / "pictures")
    (root / "data.yaml").write_text("train: pictures\nnames: [cat]\n")
    assert _objects(root) == (3, {})


def test_label_files_without_an_image_are_counted_by_name(root):
    (root / "images" / "b.jpg").rename(root / "images" / "b.heic")
    (root / "images" / "c.jpg").unlink()
    _touch(root, "labels/deep/d.txt", "labels/classes.txt")
    count, counts = _objects(root)
    assert count == 1
    assert counts == {
        "label files without an image were ignored": 2,
        "images of formats that the installed Pillow does not read were ignored": 1,
    }


def test_label_files_are_found_in_another_case_or_with_the_suffix_of_the_image(root):
    (root / "labels" / "a.txt").rename(root / "labels" / "A.txt")
    (root / "labels" / "b.txt").rename(root / "labels" / "b.jpg.txt")
    assert _objects(root) == (3, {"label files whose names differ in case or suffix from the image were read": 2})


def test_two_images_with_the_same_name_do_not_share_labels(root):
    _image(root / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.jpg and another image.*a\.txt: rename or remove one"):
        YoloDataset(root / "data.yaml", "train")
    (root / "labels" / "a.txt").write_text("\n")
    assert _objects(root)[0] == 2


def test_images_without_any_label_folder_are_refused(root):
    (root / "labels").rename(root / "somewhere")
    with pytest.raises(DataError, match=r"none of the 3 images has a label file.*labels/a\.txt"):
        YoloDataset(root / "data.yaml", "train")


def test_the_error_lists_the_content_of_an_images_folder_without_images(root):
    for path in sorted((root / "images").iterdir()):
        path.rename(path.with_suffix(".xyz"))
    with pytest.raises(DataError, match=r"names no image under 'train' \(its files end in \.xyz\)"):
        YoloDataset(root / "data.yaml", "train")
