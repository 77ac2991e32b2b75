import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from detr_jax import Detector
from detr_jax.data import DataError
from detr_jax.models import DETR
from detr_jax.results import ImageAttention, ImageDetections
from detr_jax.testing import tiny_config
from detr_jax.wording import brief, counted, image_name, one_line, with_article

NAMES = ("cat", "<b>bold</b>", "a name\nof two lines", "Fußgänger", "x" * 90)


def _found(rng, count, size=(60, 80), notes=()):
    corner = rng.uniform(0, 50, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 20, (count, 2))], axis=1).astype(np.float32)
    scores = np.sort(rng.uniform(0.1, 1, count).astype(np.float32))[::-1]
    labels = rng.integers(0, len(NAMES), count).astype(np.int32)
    return ImageDetections(boxes, scores, labels, tuple(NAMES[label] for label in labels), size, notes)


def test_the_repr_of_a_result_is_one_line_with_the_number_of_objects(rng):
    for count in rng.integers(0, 200, 20).tolist():
        found = _found(rng, count, notes=("is odd",) * int(rng.integers(3)))
        assert len(repr(found)) <= 100
        assert "\n" not in repr(found)
        assert f"{counted(count, 'object')} in 80 x 60 pixels" in repr(found)
        attention = ImageAttention(np.zeros((60, 80, 3), np.uint8), found, np.zeros((count, 3, 4)), None, (3.0, 4.0))
        assert len(repr(attention)) <= 100
        assert "4 x 3 cells" in repr(attention)
    one = ImageDetections(found.boxes[:0], found.scores[:0], found.labels[:0], (), (60, 80))
    assert repr(one) == "ImageDetections(0 objects in 80 x 60 pixels)"


def test_the_repr_of_a_detector_is_one_line_with_its_model_and_classes(rngs):
    config = tiny_config()
    model = DETR(config.model, rngs=rngs)
    for names in ({}, {0: "circle", 1: "square"}, {label: f"class number {label}" for label in range(300)}):
        text = repr(Detector(model, config, names, batch_size=2))
        assert len(text) <= 100
        assert counted(len(names) or 3, "class", "classes") in text
        assert "DETR, 5 detections" in text
        assert "32 x 32" in text
        assert "batch_size=2" in text


def test_only_keeps_the_chosen_classes_and_the_highest_scores(rng):
    found = _found(rng, 30)
    labels, most = {1, 3}, int(rng.integers(0, 12))
    chosen = [i for i in range(30) if found.labels[i] in labels][:most]
    some = found.only(labels, max_detections=most)
    for field in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(some, field), getattr(found, field)[chosen])
    assert some.names == tuple(found.names[i] for i in chosen)
    assert (some.size, some.notes) == (found.size, found.notes)
    assert len(found.only()) == 30
    assert len(found.only(set())) == 0
    with pytest.raises(ValueError, match="max_detections=-1"):
        found.only(max_detections=-1)


def test_a_path_a_picture_and_an_array_give_the_same_drawing_and_another_image_is_refused(tmp_path, rng):
    image = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    found = _found(rng, 5)
    Image.fromarray(image).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(image)).save(tmp_path / "turned.png", exif=exif)
    drawn = found.draw(image)
    assert drawn.size == (320, 240)  # small images are enlarged
    for form in (tmp_path / "a.png", str(tmp_path / "turned.png"), Image.fromarray(image)):
        np.testing.assert_array_equal(found.draw(form), drawn)
    assert not np.array_equal(drawn, found.only(max_detections=0).draw(image))
    with pytest.raises(ValueError, match=r"60 x 80 pixels, .* 80 x 60"):
        found.draw(np.ascontiguousarray(np.rot90(image)))
    with pytest.raises(DataError, match="does not exist"):
        found.draw(tmp_path / "nowhere.png")
    large = rng.integers(0, 256, (400, 500, 3), dtype=np.uint8)
    assert _found(rng, 2, (400, 500)).draw(large).size == (500, 400)


def test_notebooks_show_a_table_and_a_picture(rng):
    found = _found(rng, 25, notes=("has <frames>",))
    page = found._repr_html_()
    rows = re.findall("<tr><td>.*?</tr>", page, re.DOTALL)
    assert len(rows) == 20
    assert "and 5 more" in page
    assert "<b>" not in page
    assert "<frames>" not in page
    for row, score, box in zip(rows, found.scores.tolist(), found.boxes.tolist(), strict=False):
        assert f"<td>{score:.3f}</td>" in row
        assert ", ".join(f"{x:.1f}" for x in box) in row
    image = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    attention = ImageAttention(image, found, rng.random((25, 3, 4)), None, (3.0, 4.0))
    shown = attention._repr_mimebundle_()
    picture = Image.open(io.BytesIO(base64.b64decode(shown["image/png"])))
    np.testing.assert_array_equal(picture, attention.draw())
    assert shown["text/plain"] == repr(attention)


def test_numbers_and_articles_agree_with_their_nouns():
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
    assert list(map(with_article, ("annotation", "image", "category"))) == ["an annotation", "an image", "a category"]
    assert one_line("a(", ["b", "c"], ")", 6) == "a(...)"
    assert one_line("a(", ["b", "c"], ")", 7) == "a(b, c)"


def test_the_name_of_an_image_is_its_file_if_it_has_one():
    class Numbered:
        image_ids = (17,)

    class Named(Numbered):
        def file_name(self, index):
            return ["b/c.jpg", ""][index]

    assert image_name(Numbered(), 0) == "image 17"
    assert image_name(Named(), 0) == "b/c.jpg"


def test_long_numbers_are_brief():
    for number in (0, -7, 10**19 - 1, 1 - 10**19):
        assert brief(number) == str(number)
    assert brief(2**664) == brief(2**665 - 1) == "about 2**664"
    assert brief(-(10**5000)) == "about -2**16609"  # Python itself refuses to print it
