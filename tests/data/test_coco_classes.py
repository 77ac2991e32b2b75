from detr_jax.data.coco_classes import COCO_CLASSES, NUM_COCO_LABELS


def test_coco_has_80_classes_with_ids_up_to_90():
    assert len(COCO_CLASSES) == 80
    assert len(set(COCO_CLASSES.values())) == 80
    assert NUM_COCO_LABELS == 91
    assert list(COCO_CLASSES) == sorted(COCO_CLASSES)
    assert set(range(91)) - set(COCO_CLASSES) == {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
