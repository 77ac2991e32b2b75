"""The whole detector: shapes and types, parameter counts, and that padding never changes an answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from detr_jax.config import Config, OptimizerConfig
from detr_jax.models import (
    DETR,
    attention,
    detr_resnet50,
    detr_resnet50_dc5,
    detr_resnet101,
    detr_resnet101_dc5,
    normalize_images,
    resnet_config,
    transformer,
)
from detr_jax.models.detr import sample_padding_mask
from detr_jax.training.optimizer import is_trainable

BATCH_SHAPES = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32), jax.ShapeDtypeStruct((2, 2), jnp.int32)


def count_parameters(module, *filters):
    leaves = jax.tree.leaves(nnx.state(module, nnx.All(nnx.Param, *filters)))
    return sum(int(np.prod(leaf.shape)) for leaf in leaves)


def abstract(config):
    """The model without its values."""
    return nnx.eval_shape(lambda: DETR(config, rngs=nnx.Rngs(0)))


def random_model(config, rng):
    """A model with random values in every parameter and in the statistics of frozen batch norms.

    Frozen batch norms then turn zeros into something else, as trained ones do.
    """

    def values(leaf):
        if len(leaf.shape) == 1:  # biases, norms and statistics
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        scale = np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(rng.normal(scale=scale, size=leaf.shape), leaf.dtype)

    graph, state = nnx.split(abstract(config))
    return nnx.merge(graph, jax.tree.map(values, state))


def on_bucket(images, bucket):
    """Normalised images on one bucket, and their sizes."""
    padded = np.zeros((len(images), *bucket, 3), np.uint8)
    for place, image in zip(padded, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    sizes = jnp.asarray([image.shape[:2] for image in images], jnp.int32)
    return normalize_images(jnp.asarray(padded), sizes), sizes


@pytest.fixture
def images(rng):
    """Three images of different sizes, none a multiple of the stride."""
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((70, 90), (96, 41), (33, 120))]


def first_image_predictions(model, images, buckets):
    """Predictions for the first image: alone on its own size, then beside the others on each bucket."""
    predict = nnx.jit(lambda model, *batch: model(*batch))
    alone = predict(model, *on_bucket(images[:1], images[0].shape[:2]))
    beside = [predict(model, *on_bucket(images, bucket)) for bucket in buckets]
    return [jax.tree.map(lambda x: np.asarray(x[:, 0]), run) for run in (alone, *beside)]


@pytest.mark.parametrize(
    "backbone",
    [{"norm": "frozen_batch"}, {"norm": "group"}, {"dilation": True, "blocks": (1, 1, 2)}],
    ids=["frozen-batch", "group", "dc5"],
)
def test_padding_never_changes_an_answer(rng, images, tiny_model, tiny_backbone, backbone):
    model = random_model(tiny_model(backbone=tiny_backbone(**backbone), decoder_layers=1), rng)
    alone, *padded = first_image_predictions(model, images, [(96, 128), (160, 192)])
    for found in padded:
        np.testing.assert_allclose(found.logits, alone.logits, atol=1e-4)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-4)


def test_padding_changes_the_answer_where_it_is_not_masked(rng, images, tiny_model):
    """The test above can fail: this is the original's behaviour on a padded batch."""
    model = random_model(tiny_model(mask_padding=False, decoder_layers=1), rng)
    alone, padded = first_image_predictions(model, images, [(160, 192)])
    assert np.abs(padded.logits - alone.logits).max() > 1e-3


def test_masking_padding_changes_nothing_without_padding(rng, images, tiny_model):
    seed = rng.integers(2**31)
    answers = []
    for mask_padding in (True, False):
        config = tiny_model(mask_padding=mask_padding, decoder_layers=1)
        model = random_model(config, np.random.default_rng(seed))
        answers.append(nnx.jit(model)(*on_bucket(images[:1], images[0].shape[:2])))
    np.testing.assert_allclose(answers[0].logits, answers[1].logits, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("position_embedding", ["sine", "learned"])
def test_predictions_are_float32_for_every_layer_and_query(tiny_model, pre_norm, dtype, position_embedding):
    config = tiny_model(pre_norm=pre_norm, dtype=dtype, position_embedding=position_embedding)
    out = jax.eval_shape(lambda *batch: DETR(config, rngs=nnx.Rngs(0))(*batch), *BATCH_SHAPES)
    assert (out.logits.shape, out.boxes.shape) == ((2, 2, 7, 6), (2, 2, 7, 4))
    assert out.logits.dtype == out.boxes.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(abstract(config), nnx.Param)))


def test_bfloat16_answers_nearly_as_float32(rng, images, tiny_model):
    seed, batch = rng.integers(2**31), on_bucket(images, (96, 128))
    exact, rough = (
        nnx.jit(random_model(tiny_model(dtype=dtype, decoder_layers=1), np.random.default_rng(seed)))(*batch)
        for dtype in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(rough.logits, exact.logits, atol=0.1)
    np.testing.assert_allclose(rough.boxes, exact.boxes, atol=0.05)
    assert not np.array_equal(rough.logits, exact.logits)
    assert ((exact.boxes > 0) & (exact.boxes < 1)).all()


def test_queries_that_hardly_differ_get_different_answers_in_bfloat16(rng, images, tiny_model):
    model = random_model(tiny_model(dtype="bfloat16"), rng)
    queries = model.object_queries
    queries[...] = jnp.outer(1 + 2**-12 * jnp.arange(7.0), queries[0])  # bfloat16 tells apart 2**-8
    logits = np.asarray(nnx.jit(model)(*on_bucket(images, (96, 128))).logits[-1])
    assert len(np.unique(logits[0], axis=0)) == len(logits[0])


@pytest.mark.parametrize("training", [False, True])
def test_dropout_acts_in_every_place_of_the_transformer_only_with_rngs(monkeypatch, tiny_model, training):
    """4 places in an encoder layer and 6 in a decoder layer: probabilities, activation, and each sublayer."""
    active = []

    def record(x, rate, rngs):
        active.extend([rate] if rngs is not None else [])
        return x

    for module in (attention, transformer):
        monkeypatch.setattr(module, "dropout", record)

    def run(images, sizes):
        model = DETR(tiny_model(dropout=0.2, encoder_layers=3, decoder_layers=2), rngs=nnx.Rngs(0))
        return model(images, sizes, rngs=nnx.Rngs(dropout=1) if training else None)

    jax.eval_shape(run, *BATCH_SHAPES)
    assert active == [0.2] * (3 * 4 + 2 * 6 if training else 0)


@pytest.fixture(scope="module")
def resnet50():
    return abstract(detr_resnet50())


def test_parameter_counts_are_those_of_the_original_r50(resnet50):
    assert count_parameters(resnet50) == 41_524_768
    assert count_parameters(resnet50.encoder) == 7_890_432
    assert count_parameters(resnet50.decoder) == 9_473_024
    outside = (resnet50.input_projection, resnet50.class_head, resnet50.box_head)
    assert sum(map(count_parameters, outside)) + resnet50.object_queries.size == 706_400
    assert count_parameters(resnet50.backbone.stem) + count_parameters(resnet50.backbone.stages[0]) == 222_400


def test_parameter_count_is_that_of_the_original_r101():
    assert count_parameters(abstract(detr_resnet101())) == 60_464_672


def test_the_stem_and_the_first_stage_are_not_trained(resnet50):
    config = Config()
    assert count_parameters(resnet50, is_trainable(config)) == 41_302_368
    frozen = nnx.to_flat_state(nnx.state(resnet50, nnx.All(nnx.Param, nnx.Not(is_trainable(config)))))
    assert {path[:2] for path, _ in frozen} == {("backbone", "stem"), ("backbone", "stages")}
    assert {path[2] for path, _ in frozen if path[1] == "stages"} == {0}


def test_a_backbone_learning_rate_of_zero_freezes_the_whole_backbone(resnet50):
    trainable = is_trainable(Config(optimizer=OptimizerConfig(backbone_learning_rate=0.0)))
    assert count_parameters(resnet50, trainable) == 41_524_768 - count_parameters(resnet50.backbone)


@pytest.mark.parametrize(
    ("preset", "blocks", "dilation"),
    [
        (detr_resnet50, (3, 4, 6, 3), False),
        (detr_resnet50_dc5, (3, 4, 6, 3), True),
        (detr_resnet101, (3, 4, 23, 3), False),
        (detr_resnet101_dc5, (3, 4, 23, 3), True),
    ],
)
def test_presets_are_the_published_models_and_take_other_fields(preset, blocks, dilation):
    config = preset(num_queries=12)
    assert (config.backbone.blocks, config.backbone.dilation, config.num_queries) == (blocks, dilation, 12)
    assert config.num_classes == 91


def test_there_is_no_preset_of_an_unknown_resnet():
    with pytest.raises(ValueError, match=r"ResNet-152.*18, 34, 50, 101"):
        resnet_config(152)


def test_heads_and_queries_start_as_the_original(rngs, tiny_model, tiny_backbone):
    backbone = tiny_backbone(block="basic", blocks=(1,), stem="small")
    model = DETR(tiny_model(backbone=backbone, encoder_layers=0, decoder_layers=1, num_queries=100), rngs=rngs)
    for linear in (model.class_head, model.input_projection, *model.box_head.layers):
        bound = linear.kernel[...].shape[0] ** -0.5
        for value in (linear.kernel[...], linear.bias[...]):
            assert 0.3 * bound < jnp.abs(value).max() <= bound
    queries = model.object_queries[...]
    assert abs(queries.mean()) < 0.1
    assert 0.9 < queries.std() < 1.1


def test_the_padding_mask_reads_the_floor_of_each_cell():
    """780 valid of 800 rows are 25 valid feature rows; half-pixel centres would say 24."""
    mask = sample_padding_mask(jnp.asarray([[780, 1333]]), (800, 1333), (25, 42))
    np.testing.assert_array_equal(mask, np.zeros((1, 25, 42), bool))


def test_the_padding_mask_follows_its_definition(rng):
    bucket, cells = rng.integers(100, 300, 2), rng.integers(3, 12, 2)
    sizes = np.stack([rng.integers(1, side + 1, 4) for side in bucket], axis=1)
    mask = sample_padding_mask(jnp.asarray(sizes), tuple(map(int, bucket)), tuple(map(int, cells)))
    for image, y, x in np.ndindex(mask.shape):
        row, column = int(np.floor(y * bucket[0] / cells[0])), int(np.floor(x * bucket[1] / cells[1]))
        assert mask[image, y, x] == (row >= sizes[image][0] or column >= sizes[image][1])


def test_both_padding_masks_agree_on_buckets_of_the_stride(rng):
    sizes = jnp.asarray(rng.integers(1, 129, (20, 2)), jnp.int32)
    mask = sample_padding_mask(sizes, (128, 128), (4, 4))
    expected = np.arange(4) >= -(-np.asarray(sizes)[..., None] // 32)  # [B, 2, 4]
    np.testing.assert_array_equal(mask, expected[:, 0, :, None] | expected[:, 1, None])
