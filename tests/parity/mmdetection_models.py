"""mmdetection's registry of models, without its compiled operators: empty stand-ins let it be imported.

Deformable attention has a form in plain PyTorch, which is the real one.
"""

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest

_OPERATORS = ("carafe", "merge_cells", "modulated_deform_conv", "nms", "roi_align")


class NoOperators(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def mmdetection_registry() -> Any:
    """The registry; skips the test if mmdetection is not installed."""
    pytest.importorskip("mmcv", reason="pip install --no-deps -r tests/parity/mmdetection.txt")
    for name in ("mmcv._ext", "mmcv.ops", *(f"mmcv.ops.{name}" for name in _OPERATORS)):
        sys.modules.setdefault(name, NoOperators(name))
    found = importlib.util.find_spec("mmcv")
    assert found is not None
    assert found.origin is not None
    operators: Any = sys.modules["mmcv.ops"]
    operators.__path__ = [str(Path(found.origin).parent / "ops")]
    attention = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    operators.MultiScaleDeformableAttention = attention.MultiScaleDeformableAttention
    import mmdet.models  # noqa: F401  (fills the registry)
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    return MODELS
