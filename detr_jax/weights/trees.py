"""Leaves of pure trees by path, such as ``encoder/layers/0/feed_forward/expand/kernel``."""

from collections.abc import Mapping
from typing import Any

import jax


def _name(path: tuple) -> str:
    return "/".join(str(key.key) for key in path)


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a pure tree (nested dicts) by path."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def with_leaves(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """The tree with every leaf replaced by the leaf that ``leaves`` holds for its path."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[_name(path)], tree)
