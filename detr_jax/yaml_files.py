"""Read YAML of unknown origin. Aliases can let a few lines stand for billions of values."""

import os
from typing import Any

import yaml

from detr_jax.files import LARGEST_YAML, read_bytes

MOST_EXPANDED = 2**25
"""Characters and values that a YAML file may stand for when its aliases are replaced by what they mean."""


def read_yaml(path: str | os.PathLike[str]) -> bytes:
    """The content of a YAML file.

    Raises:
      OSError: it cannot be read, or is larger than `LARGEST_YAML`.
    """
    return read_bytes(path, LARGEST_YAML)


def compose_yaml(text: str, loader: Any = yaml.BaseLoader) -> yaml.Node | None:
    """The nodes of a YAML text, in which an alias is the node that it stands for. None if it is empty.

    Raises:
      yaml.YAMLError: it is not YAML, or its aliases stand for too much or for themselves.
      ValueError, RecursionError: it cannot be read.
    """
    node = yaml.compose(text, Loader=loader)
    if node is not None:
        _check_aliases(node)
    return node


def construct_yaml(node: yaml.Node | None, loader: Any = yaml.BaseLoader) -> Any:
    """The value of the nodes of `compose_yaml`, read with the same loader; raises its errors.

    `yaml.BaseLoader` creates only texts, lists and dictionaries, and `yaml.SafeLoader` numbers and dates too.
    """
    return None if node is None else loader("").construct_document(node)


def _check_aliases(root: yaml.Node) -> None:
    """Raises an error if the nodes stand for more than `MOST_EXPANDED` characters and values, or for themselves.

    The sizes are added up over the graph, in which each node is visited once.
    """
    sizes: dict[int, int] = {}
    waiting, open_nodes = [(root, False)], set[int]()
    while waiting:
        node, visited = waiting.pop()
        if id(node) in sizes:
            continue
        inner = _inner(node)
        if not visited:
            if id(node) in open_nodes:
                raise yaml.YAMLError("an alias stands for itself")
            open_nodes.add(id(node))
            waiting.append((node, True))
            waiting += [(one, False) for one in inner if id(one) not in sizes]
            continue
        own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        sizes[id(node)] = 1 + own + sum(sizes[id(one)] for one in inner)
        if sizes[id(node)] > MOST_EXPANDED:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_EXPANDED:,} characters and values")


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
