"""Writes docs/configuration.md from the dataclasses: ``python docs/configuration.py``."""

import ast
import dataclasses
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detr_jax import config as source

HEAD = """# Configuration

Every field, its default and what it does, written from `detr_jax/config/` by `python docs/configuration.py`.
Each can be set on the command line, as `--config.optimizer.learning_rate=1e-4`; a preset or a configuration file sets
many at once. The defaults are those of DETR R50 on COCO. A section can hold any class of its kind, and sections such as
`data.sources` hold entries by name, to which a configuration file can add its own.
"""


def reference() -> str:
    """The whole document."""
    parts = [HEAD]
    for name, value in _nodes("", source.Config()):
        own = type(value)
        title = name.rstrip(".") or "config"
        descriptions = texts(own)
        rows = [
            f"| `{name}{f.name}` | {_shown(getattr(value, f.name))} | {descriptions[f.name]} |"
            for f in dataclasses.fields(own)
            if not dataclasses.is_dataclass(getattr(value, f.name))
        ]
        if rows:
            about = " ".join((own.__doc__ or "").split()).replace("``", "`")
            kind = f" Its class is `{own.__name__}`."
            parts.append(
                f"## {title}\n\n{about}{kind}\n\n| field | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n"
            )
    return "\n".join(parts)


def texts(node: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and of its base classes, each on one line."""
    found: dict[str, str] = {}
    for cls in reversed([one for one in node.__mro__ if dataclasses.is_dataclass(one)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(definition, ast.ClassDef)
        for field, after in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                text = " ".join(str(after.value.value).split())
                found[ast.unparse(field.target)] = text.replace("|", "\\|").replace("``", "`")
    return found


def _shown(value: Any) -> str:
    """A default; of a dictionary of parts, the names of its entries."""
    if isinstance(value, dict) and all(map(dataclasses.is_dataclass, value.values())):
        return ", ".join(f"`{name}`" for name in value)
    return f"`{value!r}`"


def _nodes(name: str, node: Any) -> list[tuple[str, Any]]:
    """A dataclass and those within it and its dictionaries, outer first, with the beginning of their fields' paths."""
    found = [(name, node)]
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        if dataclasses.is_dataclass(value):
            found += _nodes(f"{name}{f.name}.", value)
        elif isinstance(value, dict):
            for key, entry in value.items():
                found += _nodes(f"{name}{f.name}.{key}.", entry) if dataclasses.is_dataclass(entry) else []
    return found


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(reference(), encoding="utf-8")
