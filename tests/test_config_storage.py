"""What config.json can hold: classes of scripts and notebooks, lists, computed fields, and refusals before a run."""

import dataclasses
import enum
import json
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest

from detr_jax.config import Config, ConfigError, CrossEntropy, LossTerm, check, from_json, to_json
from detr_jax.testing import tiny_config
from tests.cli.command import run


class Side(enum.StrEnum):
    LEFT = "left"
    RIGHT = "right"


@dataclasses.dataclass(kw_only=True)
class Part:
    number: int = 0


@dataclasses.dataclass(kw_only=True)
class Fields(LossTerm):
    """A term with fields of many types."""

    tags: list[str] = dataclasses.field(default_factory=list)
    pairs: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    rows: tuple[list[float], ...] = ()
    either: tuple[int, ...] | list[str] | None = None
    plain: list = dataclasses.field(default_factory=list)  # type: ignore[type-arg]
    by_name: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    maybe: dict[str, Part] | None = None
    sides: tuple[Side, ...] = ()
    anything: Any = None
    part: Any = dataclasses.field(default_factory=Part)
    file: Any = None
    double: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.double = 2 * self.weight

    def compute(self, matched):
        raise AssertionError("not called")


def with_term(**fields):
    """A configuration that can train, with one more term."""
    config = tiny_config()
    config.loss.terms["mine"] = Fields(**fields)
    return config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tags", ["a", "b"]),
        ("pairs", [(1, 2), (3, 4)]),
        ("rows", ([0.5], [])),
        ("either", (1, 2)),
        ("either", ["a"]),
        ("either", None),
        ("plain", [1, "a"]),
        ("by_name", {"a": [1, 2], "b": []}),
        ("maybe", {"one": Part(number=3)}),
        ("sides", (Side.LEFT,)),
        ("anything", (1, ("a", None))),
        ("anything", {"a": 1.5}),
        ("part", Part(number=5)),
        ("weight", 3.0),
    ],
)
def test_a_field_comes_back_with_the_type_of_its_value(field, value):
    config = with_term(**{field: value})
    assert check(config) is config
    restored = from_json(to_json(config))
    assert restored == config
    term = restored.loss.terms["mine"]
    assert type(getattr(term, field)) is type(value)
    assert term.double == 2 * term.weight
    assert "double" not in json.loads(to_json(config))["loss"]["terms"]["mine"], "the class computes it"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("anything", [1, 2], "declare the exact type"),
        ("anything", Part(number=1), "declare the exact type"),
        ("anything", (Part(), Part()), "use a dictionary"),
        ("anything", {1: "a"}, "keys must be texts"),
        ("anything", float("nan"), "cannot be written as JSON"),
        ("file", Path("a/b"), "Path), which cannot be written as JSON"),
        ("file", {"a": [b"x"]}, "(bytes), which cannot be written as JSON"),
    ],
)
def test_what_config_json_cannot_hold_is_refused_before_a_run_with_its_path(field, value, words):
    config = with_term(**{field: value})
    with pytest.raises(ConfigError) as error:
        check(config)
    (sentence,) = str(error.value).splitlines()
    assert sentence.startswith(f"loss.terms.mine.{field}")
    assert words in sentence


def test_a_computed_field_that_was_set_by_hand_is_refused():
    config = with_term(weight=2.0)
    config.loss.terms["mine"].double = 5.0
    with pytest.raises(ConfigError, match=r"^loss\.terms\.mine\.double=5\.0 .* as 4\.0"):
        check(config)


def test_to_json_names_the_field_that_it_cannot_write():
    with pytest.raises(ConfigError, match=r"^loss\.terms\.mine\.file holds PosixPath\('x'\)"):
        to_json(with_term(file=Path("x")))


def test_a_class_inside_a_function_is_refused_before_a_run():
    @dataclasses.dataclass(kw_only=True)
    class Local(LossTerm):
        def compute(self, matched):
            return matched

    config = tiny_config()
    config.loss.terms["mine"] = Local()
    with pytest.raises(ConfigError, match=r"^loss\.terms\.mine has kind=.*Local'.*at the top of a module\.$"):
        check(config)


TERM = """
import dataclasses
from detr_jax.config import Config, LossTerm, check, from_json, to_json
from detr_jax.testing import tiny_config

@dataclasses.dataclass(kw_only=True)
class Area(LossTerm):
    power: int = 2

    def compute(self, matched):
        return matched
"""
WRITE = """
config = tiny_config()
config.loss.terms["area"] = Area(power=3)
assert from_json(to_json(check(config))) == config, "a run of the same program is resumed"
"""
PRINT = """
print(to_json(config))
"""


def output_of(*arguments, folder):
    """What Python prints, called in a folder."""
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=120
    )
    return ended.stdout


@pytest.mark.parametrize("as_module", [False, True])
def test_a_class_of_a_script_is_found_by_a_command_that_imports_the_script(tmp_path, as_module, monkeypatch, request):
    name = f"script_of_a_user_{as_module}"
    file = tmp_path / f"{name}.py"
    file.write_text(TERM + 'if __name__ == "__main__":' + textwrap.indent(WRITE + PRINT, "    "))
    text = output_of(*(["-m", name] if as_module else [str(file)]), folder=tmp_path)
    assert json.loads(text)["loss"]["terms"]["area"]["kind"] == f"{name}:Area"
    with pytest.raises(ConfigError, match=f"import {name} before"):
        from_json(text)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    request.addfinalizer(lambda: sys.modules.pop(name, None))
    assert run("--import", file, "make-shapes", "--help").exit_code == 0
    term = from_json(text).loss.terms["area"]
    assert (type(term), term.power) == (sys.modules[name].Area, 3)


def test_a_class_of_a_notebook_is_found_in_its_process_and_elsewhere_a_sentence_says_what_to_do(tmp_path):
    text = output_of("-c", TERM + WRITE + PRINT, folder=tmp_path)
    assert json.loads(text)["loss"]["terms"]["area"]["kind"] == "__main__:Area"
    with pytest.raises(ConfigError, match=r"^loss\.terms\.area .* notebook .*define Area here before.*--import FILE"):
        from_json(text)


def test_an_object_whose_class_was_defined_again_is_refused(tmp_path):
    again = """
try:
    exec(TERM) or check(config)
except ValueError as error:
    print(error)
"""
    printed = output_of("-c", f"TERM = {TERM!r}" + TERM + WRITE + again, folder=tmp_path)
    assert printed.splitlines() == [
        "loss.terms.area has the class Area, which was defined again since: create it again."
    ]


@pytest.mark.parametrize("module", ["detr_jax.__main__", "detr_jax.cli", "detr_jax.export_loader"])
def test_reading_json_imports_no_module_of_the_package_outside_of_its_configuration(module, monkeypatch):
    monkeypatch.delitem(sys.modules, module, raising=False)
    text = json.dumps({"loss": {"terms": {"x": {"kind": f"{module}:X"}}}})
    with pytest.raises(ConfigError, match=rf"^loss\.terms\.x has kind='{module}:X'"):
        from_json(text)
    assert module not in sys.modules


def test_reading_json_does_not_make_a_module_import_another(monkeypatch):
    lazy = types.ModuleType("lazy_of_a_user")
    lazy.__getattr__ = lambda name: pytest.fail(f"{name} was imported")
    monkeypatch.setitem(sys.modules, lazy.__name__, lazy)
    with pytest.raises(ConfigError, match="lazy_of_a_user has no dataclass Thing"):
        from_json(json.dumps({"loss": {"terms": {"x": {"kind": "lazy_of_a_user:Thing"}}}}))


def test_importing_the_main_module_runs_no_command(tmp_path):
    assert output_of("-c", "import detr_jax.__main__; print('imported')", folder=tmp_path) == "imported\n"
    assert "Commands:" in output_of("-m", "detr_jax", "--help", folder=tmp_path)


@pytest.mark.parametrize(
    ("section", "entry"), [("loss", "terms"), ("loss", "costs"), ("data", "sources"), ("evaluation", "metrics")]
)
def test_a_new_entry_of_json_must_name_its_class(section, entry):
    with pytest.raises(ConfigError, match=rf'^{section}\.{entry}\.mine must be .* "kind": "module:Class"'):
        from_json(json.dumps({section: {entry: {"mine": {}}}}))


def test_a_photometric_change_of_json_must_name_its_class():
    with pytest.raises(ConfigError, match=r'^data\.augmentation\.photometric must be .* "kind"'):
        from_json('{"data": {"augmentation": {"photometric": {"hue": 0.1}}}}')
    assert from_json('{"data": {"augmentation": {"photometric": null}}}') == Config()


@pytest.mark.parametrize(
    "loss",
    [
        {"giou_weight": 3, "terms": {}},
        {"eos_coefficient": 0.2, "terms": {"ce": {"kind": "detr_jax.config.loss:GIoU"}}},
    ],
)
def test_an_earlier_name_of_a_field_that_json_lacks_is_refused_by_path(loss):
    with pytest.raises(ConfigError, match=r"^The configuration sets loss\.terms\.\w+\.\w+ under an earlier name\."):
        from_json(json.dumps({"loss": loss}))


def test_an_earlier_name_sets_the_field_of_an_entry_of_another_class():
    loss = {"giou_weight": 3, "terms": {"giou": {"kind": "detr_jax.config.loss:CrossEntropy"}}}
    assert from_json(json.dumps({"loss": loss})).loss.terms == {"giou": CrossEntropy(weight=3)}
