"""The check of parts that a user adds to a configuration: ranges, types, missing members and names of entries."""

import dataclasses
import math
from dataclasses import dataclass

import jax
import pytest

from detr_jax.config import (
    Augmentation,
    BackboneBase,
    CardinalityError,
    CocoBox,
    ConfigError,
    DetectorConfig,
    DetrAugmentation,
    Diagnostic,
    GIoU,
    LossTerm,
    MatchingCost,
    MetricConfig,
    Photometric,
    SourceConfig,
    check,
    check_data,
    check_fields,
    ranged,
)
from detr_jax.testing import tiny_config
from detr_jax.training import loop
from detr_jax.workdir import read_metrics


@dataclass(kw_only=True)
class Margin(LossTerm):
    """A term with defaults that no field of the package has."""

    seed: int = 0
    margin: float = -0.1
    limit: float = math.inf
    large: int = 2**40
    levels: tuple[int, ...] = (0, -1)
    scale: float | None = None
    share: float = ranged(0.5, most=1)
    weights: dict[str, float | None] = dataclasses.field(default_factory=dict)
    colours: tuple[float, float, float] = (math.inf, 0.0, 0.0)

    def compute(self, matched):
        raise AssertionError("not called")


@dataclass(kw_only=True)
class Again(Margin):
    """A term that gives a field of the package another default."""

    weight: float = -1.0


def faults_with(path, value):
    """The sentences about a configuration that can train but for one value."""
    config = node = tiny_config()
    *parents, name = path.split(".")
    for parent in parents:
        node = node[parent] if isinstance(node, dict) else getattr(node, parent)
    if isinstance(node, dict):
        node[name] = value
    else:
        setattr(node, name, value)
    try:
        check(config)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def test_the_fields_of_a_users_class_may_hold_any_number():
    assert faults_with("loss.terms.mine", Margin()) == []
    assert faults_with("loss.terms.mine", Margin(scale=-5, margin=-7.0, seed=-3)) == []


@pytest.mark.parametrize(
    ("term", "field"),
    [
        (Margin(share=1.5), "share"),
        (Margin(weight=-1.0), "weight"),
        (Margin(weight=math.nan), "weight"),
        (Again(), "weight"),
    ],
)
def test_ranges_that_are_given_and_ranges_of_the_package_hold_in_a_users_class(term, field):
    (sentence,) = faults_with("loss.terms.mine", term)
    assert sentence.startswith(f"loss.terms.mine.{field}=")
    assert "out of range" in sentence


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"weights": {"a": "x"}}, "weights holds 'a': 'x', which has the wrong type: it must be a number or None."),
        ({"scale": "x"}, "scale='x' has the wrong type: it must be a number or None."),
        ({"levels": ("x",)}, "levels=('x',) has the wrong type: it must be values in brackets, such as (64, 64)."),
        ({"weights": 5}, "weights=5 has the wrong type: it must be a dictionary whose values are a number or None."),
    ],
)
def test_a_wrong_type_is_refused_in_words(fields, words):
    config = tiny_config()
    config.loss.terms["mine"] = Margin(**fields)
    with pytest.raises(ConfigError) as error:
        check_fields(config)
    assert str(error.value) == f"loss.terms.mine.{words}"


@pytest.mark.parametrize(
    ("path", "part", "missing"),
    [
        ("model", DetectorConfig(), "build"),
        ("model.backbone", BackboneBase(), "build, channels, strides"),
        ("data.augmentation", Augmentation(), "bounds, draws, geometries"),
        ("data.augmentation", DetrAugmentation(photometric=Photometric()), "__call__, num_draws"),
        ("data.sources.mine", SourceConfig(), "open"),
        ("loss.terms.mine", LossTerm(), "compute"),
        ("loss.terms.mine", Diagnostic(), "compute"),
        ("loss.costs.mine", MatchingCost(), "compute"),
        ("evaluation.metrics.mine", MetricConfig(), "build"),
    ],
)
def test_a_base_class_is_refused_with_its_place_and_what_it_lacks(path, part, missing):
    (sentence,) = faults_with(path, part)
    place = f"{path}.photometric" if isinstance(part, DetrAugmentation) else path
    name = "Photometric" if isinstance(part, DetrAugmentation) else type(part).__name__
    assert sentence == f"{place} has the class {name}, which does not define {missing}: use a subclass that does."


def test_a_data_set_that_cannot_be_opened_is_refused_by_the_check_of_data():
    config = tiny_config()
    config.data.sources["mine"], config.data.dataset = SourceConfig(), "mine"
    with pytest.raises(ConfigError, match=r"^data\.sources\.mine has the class SourceConfig"):
        check_data(config.data)


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("loss", CardinalityError()),
        ("loss_bbox", CardinalityError()),
        ("loss_other", CardinalityError()),
        ("gradient_norm", CardinalityError()),
        ("learning_rate", CardinalityError()),
        ("images_per_s", CardinalityError()),
        ("giou_0", GIoU()),
        ("giou_enc", GIoU()),
        ("bbox_dn_3", GIoU()),
        ("0", GIoU()),
    ],
)
def test_a_term_whose_name_the_log_uses_for_something_else_is_refused(name, term):
    (sentence,) = faults_with(f"loss.terms.{name}", term)
    assert sentence.startswith(f"loss.terms.{name} is logged as ")
    assert sentence.endswith(": choose another name.")


@pytest.mark.parametrize(("name", "term"), [("top_5", GIoU()), ("giou_small", GIoU()), ("losses", CardinalityError())])
def test_a_term_whose_name_only_looks_like_another_is_accepted(name, term):
    assert faults_with(f"loss.terms.{name}", term) == []


@pytest.mark.parametrize("name", ["a.b", "", "a b", "a/b", "a="])
def test_a_name_of_an_entry_that_no_path_can_hold_is_refused(name):
    config = tiny_config()
    config.loss.terms[name] = GIoU()
    with pytest.raises(ConfigError) as error:
        check(config)
    assert str(error.value) == f"loss.terms holds an entry called {name!r}: use letters, digits, _ and - only."


def test_metrics_whose_numbers_have_one_name_are_refused():
    @dataclass(kw_only=True)
    class Two(CocoBox):
        numbers = ("b_AP", "AP")

    config = tiny_config()
    config.evaluation.metrics |= {"a": Two(), "a_b": CocoBox()}
    (sentence,) = config.evaluation.faults("evaluation.")
    assert sentence.startswith("evaluation.metrics holds two entries whose numbers are logged as a_b_AP")


def test_the_names_that_a_run_logs_are_refused_for_terms(tmp_path, one_device):
    """Whatever a run logs besides the terms cannot be the name of a diagnostic."""
    config = tiny_config()
    config.training.steps, config.data.on_error = 1, "skip"
    with jax.numpy_dtype_promotion("standard"):  # optax computes powers of floats with integers
        loop.train(config, tmp_path, mesh=one_device)
    logged = {name.removeprefix("train/") for line in read_metrics(tmp_path) for name in line if "train/" in name}
    others = {name for name in logged - set(config.loss.terms) if not name.startswith("loss_")}
    assert len(others) >= 8
    for name in others:
        assert faults_with(f"loss.terms.{name}", CardinalityError()), name
