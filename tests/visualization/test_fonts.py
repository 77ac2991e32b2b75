import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont

from detr_jax.visualization import LabelledBoxes, charts, draw_boxes, fonts

MATPLOTLIB = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The only folder of fonts, empty at first."""
    monkeypatch.setattr(fonts, "font_folders", lambda: [tmp_path / "fonts"])
    caches = (fonts.font_file, fonts._font_files)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path / "fonts"
    for cache in caches:
        cache.cache_clear()


def _glyph(width, height):
    pen = TTGlyphPen(None)
    pen.moveTo((50, 0))
    for point in ((50, height), (width, height), (width, 0)):
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


def _write_font(path, sizes):
    """A font of rectangles: (width, height) in thousandths of its size, by character."""
    names = {ord(character): f"glyph{i}" for i, character in enumerate(sizes)}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    shapes = [(700, 700), *sizes.values()]
    builder.setupGlyf(dict(zip([".notdef", *names.values()], (_glyph(*shape) for shape in shapes), strict=True)))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (1000, 50)))
    builder.setupHorizontalHeader(ascent=900, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path.parent.mkdir(exist_ok=True)
    builder.save(path)


def _ideographs(rng, count):
    return [chr(code) for code in rng.choice(np.arange(0x4E00, 0x9FA0), count, replace=False).tolist()]


def _drawn(name, label=1):
    items = LabelledBoxes(np.array([[20.0, 60, 120, 160]]), np.array([label]), np.array([0.9]))
    return np.asarray(draw_boxes(np.zeros((200, 300, 3), np.uint8), items, {label: name}))


@pytest.mark.parametrize("file", ["DejaVuSans.ttf", "STIXGeneral.ttf", "cmr10.ttf"])
def test_a_font_has_the_characters_that_its_tables_list(rng, file):
    font = TTFont(MATPLOTLIB / file)
    table = {code: name for code, name in font.getBestCmap().items() if font["glyf"][name].numberOfContours}
    codes = [*rng.choice(list(table), 200).tolist(), *rng.integers(0x21, 0x3000, 200).tolist()]
    for character in map(chr, codes):
        if not fonts._is_invisible(character) and unicodedata.category(character) != "Cc":
            assert fonts._has(str(MATPLOTLIB / file), character) == (ord(character) in table), hex(ord(character))


def test_a_name_is_drawn_with_the_first_font_that_has_all_of_it(folder, rng):
    first, second, third, absent = _ideographs(rng, 4)
    _write_font(folder / "a.ttf", {first: (900, 900)})
    _write_font(folder / "b.ttf", {first: (900, 500), second: (500, 900), third: (300, 300), " ": (60, 10)})
    (folder / "broken.ttf").write_bytes(b"no font")
    assert fonts.font_file("person 1") == ""
    assert fonts.font_file(first) == str(folder / "a.ttf")
    assert fonts.font_file(first + second) == str(folder / "b.ttf")
    assert fonts.font_file(first + absent) is None
    assert not np.array_equal(_drawn(first + second), _drawn(first + third))
    assert fonts.class_caption(3, {3: f"{first} \n{second}"}) == f"{first} {second}"


def test_a_name_that_no_font_can_show_becomes_the_number_of_its_label(folder, rng):
    name = "".join(_ideographs(rng, 3))
    one, other = rng.choice(1000, 2, replace=False).tolist()
    assert fonts.class_caption(one, {one: name}) == f"#{one}"
    assert fonts.class_caption(one, {one: f"{name} car"}) == f"#{one} car"
    assert fonts.class_caption(one, {one: " \n"}) == f"#{one}"
    assert fonts.class_caption(one, {}) == str(one)
    assert fonts.legible("caf\udce9.png", "?") == "caf?.png"  # a file whose name is not UTF-8
    letters = [_drawn(name, label).min(axis=2) > 200 for label in (one, other)]  # white
    assert letters[0].any()
    assert not np.array_equal(*letters)
    assert _drawn(f"{name} " * 60).any()


def test_a_last_resort_font_is_not_used(folder, rng):
    (character,) = _ideographs(rng, 1)
    everything = {character: (900, 900), "\uffff": (800, 300), "\U0010ffff": (300, 800)}
    _write_font(folder / "every.ttf", everything)
    assert fonts.font_file(character) is None
    del everything["\U0010ffff"], everything["\uffff"]
    _write_font(folder / "some.ttf", everything)
    fonts.font_file.cache_clear()
    fonts._font_files.cache_clear()
    assert fonts.font_file(character) == str(folder / "some.ttf")


def test_charts_show_names_with_the_fonts_that_have_them_and_signs_as_they_are(folder, tmp_path, rng):
    names = _ideographs(rng, 2)
    _write_font(folder / "ideographs.ttf", {names[0]: (900, 300), names[1]: (300, 900)})
    pictures = []
    for pair in (names, names[::-1], ["a$b$", "_c"]):
        charts.lines(tmp_path / "a.png", "t", {name: ([0, 1], [i, 2]) for i, name in enumerate(pair)}, x="x", y="y")
        charts.bars(tmp_path / "b.png", "t", dict.fromkeys(pair, 0.5), x="x")
        charts.confusion_matrix(tmp_path / "c.png", "t", np.ones((3, 3), int), pair)
        pictures.append([(tmp_path / f"{file}.png").read_bytes() for file in "abc"])
    for one, other in zip(pictures[0], pictures[1], strict=True):
        assert one != other
