import numpy as np
from PIL import Image, ImageColor

from detr_jax.visualization import LabelledBoxes, comparison_sheet, draw_boxes


def test_boxes_are_outlined_at_their_coordinates(rng):
    height, width = rng.integers(80, 200, 2)
    x0, y0 = rng.integers(0, 30, 2)
    x1, y1 = rng.integers(60, 79, 2)
    boxes = LabelledBoxes(np.array([[x0, y0, x1, y1]], np.float32), np.array([1]))
    pixels = np.asarray(draw_boxes(np.zeros((height, width, 3), np.uint8), boxes, {1: "cat"}))
    color = ImageColor.getrgb("#3cb44b")
    drawn = (pixels == color).all(axis=-1)
    assert drawn[y1, x0 : x1 + 1].all()
    assert drawn[y0 : y1 + 1, x1].all()
    assert not drawn[y1 + 3 :].any()
    assert not drawn[:, x1 + 60 :].any()


def test_boxes_beyond_the_image_and_without_area_are_drawn_without_error():
    boxes = np.array([[-50, -50, 500, 500], [70, 70, 60, 60], [900, 900, 950, 950], [5, 5, 5, 5]], np.float32)
    items = LabelledBoxes(boxes, np.arange(4), np.linspace(0, 1, 4))
    assert draw_boxes(np.zeros((40, 60, 3), np.uint8), items, {}, scale=2.0).size == (120, 80)


def test_a_sheet_has_a_pair_for_each_image(tmp_path, rng):
    images = [rng.integers(0, 255, (*rng.integers(20, 90, 2), 3), dtype=np.uint8) for _ in range(5)]
    nothing = LabelledBoxes(np.zeros((0, 4), np.float32), np.zeros(0, int))
    sizes = []
    for count in (1, 3, 5):
        comparison_sheet(tmp_path / "sheet.png", images[:count], [nothing] * count, [nothing] * count, {}, columns=3)
        with Image.open(tmp_path / "sheet.png") as sheet:
            sizes.append(sheet.size)
    assert sizes[1][0] == 3 * sizes[0][0] == sizes[2][0]
    assert sizes[2][1] == 2 * sizes[0][1] == 2 * sizes[1][1]


def test_a_caption_is_complete_at_every_edge_of_a_picture(rng):
    for _ in range(60):
        height, width = rng.integers(100, 600, 2).tolist()
        top, left = rng.uniform(-1, 40), rng.uniform(-1, width - 2)
        box = [left, top, rng.uniform(left, width + 1), rng.uniform(top, height + 1)]
        on_pixels = [10, height // 2, 30, height // 2 + 10]  # in the middle of the picture
        patches = []
        for corners in (box, on_pixels):
            items = LabelledBoxes(np.array([corners], np.float32), np.array([0]), np.array([0.87]))
            patches.append(_letters(draw_boxes(np.zeros((height, width, 3), np.uint8), items, {0: "dog"})))
        np.testing.assert_array_equal(*patches)


def _letters(picture):
    """The smallest part of a picture that holds all letters, which are white, over a caption of little green."""
    pixels = np.asarray(picture)
    rows, columns = np.nonzero(pixels[..., 1] > 60)
    assert min(rows.min(), columns.min()) >= 2
    return pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def test_a_caption_wider_than_the_picture_keeps_its_beginning_and_its_score(rng):
    name = "".join(rng.choice(list("abcdefgh"), 200))
    box = LabelledBoxes(np.array([[3.0, 40, 60, 60]]), np.array([0]), np.array([0.5]))
    blank = np.zeros((70, 150, 3), np.uint8)
    cut = np.asarray(draw_boxes(blank, box, {0: name}))
    np.testing.assert_array_equal(cut, draw_boxes(blank, box, {0: name[:150]}))
    other_score = LabelledBoxes(box.boxes, box.labels, np.array([0.6]))
    assert not np.array_equal(cut, draw_boxes(blank, other_score, {0: name}))
    assert not np.array_equal(cut, draw_boxes(blank, box, {0: f"{'x'}{name}"}))


def test_a_sheet_shows_the_names_of_its_images(tmp_path, rng):
    image = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    nothing = LabelledBoxes(np.zeros((0, 4), np.float32), np.zeros(0, int))
    sheets = []
    for names in (None, ["a.jpg"], ["a/very/long/path/" * 9 + "b.jpg"]):
        comparison_sheet(tmp_path / "sheet.png", [image], [nothing], [nothing], {}, names)
        sheets.append(np.asarray(Image.open(tmp_path / "sheet.png")))
    left, right = np.split(np.array([sheet[:22] for sheet in sheets]), 2, axis=2)
    assert not np.array_equal(left[0], left[1])
    assert not np.array_equal(left[1], left[2])
    np.testing.assert_array_equal(right[0], right[2])  # the long name stays on its own side
