from detr_jax.data.coco_classes import COCO_CLASSES, NUM_COCO_LABELS

PUBLISHED = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking
meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot
dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
toothbrush
"""  # the categories of the official instances_train2017.json, in their order


def test_coco_has_80_classes_with_ids_up_to_90():
    assert len(COCO_CLASSES) == 80
    assert len(set(COCO_CLASSES.values())) == 80
    assert NUM_COCO_LABELS == 91
    assert list(COCO_CLASSES) == sorted(COCO_CLASSES)
    assert set(range(91)) - set(COCO_CLASSES) == {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert list(COCO_CLASSES.values()) == " ".join(PUBLISHED.split()).split(", ")
