import numpy as np
from PIL import Image, ImageColor

from detr_jax.visualization import LabelledBoxes, comparison_sheet, draw_boxes


def test_boxes_are_outlined_where_they_are(rng):
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
