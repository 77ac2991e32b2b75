"""Checksums of the arrays and texts of a checkpoint, so that damage on a disk is never used.

The checksum is CRC-32, which finds every error of up to 32 neighbouring bits. It does not protect against intent.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Checksums = dict[str, int]
"""A checksum by the path of an array."""


def of_text(text: str) -> int:
    """The checksum of a text."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def of_tree(tree: Any) -> Checksums:
    """The checksum of each leaf of a tree: a text, a number, or an array with its type, its shape and its values.

    Arrays may be sharded over devices of several processes. All processes must call it then, and get the same.
    """
    return {_name(path): _of_array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def differing(tree: Any, expected: Mapping[str, int]) -> list[str]:
    """The paths whose arrays have another checksum than expected, or are only in one of both."""
    found = of_tree(tree)
    return sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _of_array(leaf: Any) -> int:
    if isinstance(leaf, str):
        return of_text(leaf)
    if isinstance(leaf, bool | int | float | np.generic):
        return of_text(repr(leaf.item() if isinstance(leaf, np.generic) else leaf))
    array = np.ascontiguousarray(_whole(leaf))
    beginning = zlib.crc32(f"{array.dtype.str if array.dtype.kind != 'V' else array.dtype.name} {array.shape}".encode())
    return zlib.crc32(array.reshape(-1).view(np.uint8).data, beginning)


def _whole(leaf: Any) -> np.ndarray:
    """An array in numpy, also if its shards are on devices of other processes."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    if not leaf.is_fully_replicated:
        assert isinstance(leaf.sharding, NamedSharding)
        everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
        leaf = jax.jit(lambda x: x, out_shardings=everywhere)(leaf)
    return np.asarray(leaf.addressable_data(0))
