from collections import Counter

from detr_jax.config import ShapesConfig
from detr_jax.data import ShapesDataset
from detr_jax.data.class_table import class_table, format_classes
from detr_jax.data.coco_classes import COCO_CLASSES


def test_the_table_of_a_data_set_counts_its_objects(rng):
    source = ShapesDataset(ShapesConfig(train_images=30, seed=int(rng.integers(2**31))), "train")
    counted = Counter(one["category_id"] for one in source.ground_truth()["annotations"])
    assert class_table(source) == [(0, "circle", counted[0]), (1, "square", counted[1]), (2, "triangle", counted[2])]


def test_classes_are_shown_one_per_line_with_their_numbers_if_given():
    lines = format_classes(COCO_CLASSES).splitlines()
    assert lines[0].split() == ["1", "person"]
    assert lines[-1].split() == ["90", "toothbrush"]
    assert len(lines) == 80
    assert [line.split() for line in format_classes({2: "b c", 0: "a"}, {2: 7}).splitlines()] == [
        ["0", "a", "0"],
        ["2", "b", "c", "7"],
    ]
