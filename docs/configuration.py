"""Writes docs/configuration.md from the dataclasses: ``python docs/configuration.py``."""

import ast
import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detr_jax import config as source

HEAD = """# Configuration

Every field, its default and what it does, written from `detr_jax/config/` by `python docs/configuration.py`.
Each can be set on the command line, as `--config.optimizer.learning_rate=1e-4`; a file under `configs/` sets many at
once. The defaults are those of DETR R50 on COCO.
"""


def reference() -> str:
    """The whole document."""
    parts = [HEAD]
    for name, value in _nodes("", source.Config()):
        own = type(value)
        title = name.rstrip(".") or "config"
        rows = [
            f"| `{name}{f.name}` | `{getattr(value, f.name)!r}` | {texts(own).get(f.name, '')} |"
            for f in dataclasses.fields(own)
            if not dataclasses.is_dataclass(getattr(value, f.name))
        ]
        if rows:
            about = " ".join((own.__doc__ or "").split())
            parts.append(f"## {title}\n\n{about}\n\n| field | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def texts(node: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass, each on one line."""
    (definition,) = ast.parse(inspect.getsource(node)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = " ".join(str(after.value.value).split())
            found[ast.unparse(field.target)] = text.replace("|", "\\|").replace("``", "`")
    return found


def _nodes(name: str, node: Any) -> list[tuple[str, Any]]:
    """A dataclass and those within it, outer first, with the beginning of their fields' paths."""
    found = [(name, node)]
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        if dataclasses.is_dataclass(value):
            found += _nodes(f"{name}{f.name}.", value)
    return found


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(reference(), encoding="utf-8")
