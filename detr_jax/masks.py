"""Masks as bits, and the bilinear upsampling of mask logits.

A mask [H, W] is carried as [ceil(H / 8), W] uint8: bit ``k`` of byte row ``i`` is row ``8 i + k``. This takes an eighth
of the memory, on the way to the device and there.

Dimensions: ``B`` batch, ``K`` masks of an image, ``n`` masks, ``rows, columns`` cells of predicted masks.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float32, Int, UInt8

from detr_jax.structures import Array

ROWS_PER_BYTE = 8


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """The bits [..., ceil(H / 8), W] uint8 of masks [..., H, W] bool, in numpy."""
    return np.packbits(masks, axis=-2, bitorder="little")


def unpack_masks(bits: np.ndarray, height: int) -> np.ndarray:
    """The masks [..., height, W] bool of bits [..., ceil(height / 8), W] uint8, in numpy."""
    return np.unpackbits(bits, axis=-2, count=height, bitorder="little").view(bool)


def pack_on_device(masks: Bool[Array, "*N H W"]) -> UInt8[Array, "*N byte_rows W"]:
    """The bits of masks, as `pack_masks`, in JAX."""
    *batch, height, width = masks.shape
    padded = jnp.pad(masks, [(0, 0)] * len(batch) + [(0, -height % ROWS_PER_BYTE), (0, 0)])
    rows = padded.reshape(*batch, -(-height // ROWS_PER_BYTE), ROWS_PER_BYTE, width).astype(jnp.uint8)
    weights = (1 << jnp.arange(ROWS_PER_BYTE, dtype=jnp.uint8)).reshape(*[1] * (len(batch) + 1), ROWS_PER_BYTE, 1)
    return (rows * weights).sum(axis=-2, dtype=jnp.uint8)


def unpack_on_device(bits: UInt8[Array, "*N byte_rows W"]) -> Bool[Array, "*N H W"]:
    """The masks of bits, as `unpack_masks`, in JAX. ``H`` is a multiple of 8."""
    *batch, byte_rows, width = bits.shape
    shifts = jnp.arange(ROWS_PER_BYTE, dtype=jnp.uint8).reshape(*[1] * (len(batch) + 1), ROWS_PER_BYTE, 1)
    rows = (bits[..., None, :] >> shifts) & 1
    return rows.reshape(*batch, byte_rows * ROWS_PER_BYTE, width).astype(bool)


def upsample(
    logits: Float32[Array, "B K rows columns"],
    size: tuple[int, int],
    valid_cells: Int[Array, "B 2"],
    valid_pixels: Int[Array, "B 2"],
) -> Float32[Array, "B K H W"]:
    """Bilinear interpolation with half-pixel centres, from the valid cells of each image to its valid pixels.

    Args:
      logits: [B, K, rows, columns] float32.
      size: (H, W), the size of the bucket in pixels.
      valid_cells: [B, 2] int, (height, width) of each image in cells of the logits.
      valid_pixels: [B, 2] int, (height, width) of each image in pixels. Beyond them the result has no meaning.
    """
    rows, columns = (
        _interpolation(cells, pixels, valid_cells[:, axis], valid_pixels[:, axis])
        for axis, (cells, pixels) in enumerate(zip(logits.shape[2:], size, strict=True))
    )
    exact = lax.Precision.HIGHEST
    wide = jnp.einsum("bkhw,bvw->bkhv", logits, columns, precision=exact)
    return jnp.einsum("bkhv,buh->bkuv", wide, rows, precision=exact)


def _interpolation(
    cells: int, pixels: int, valid_cells: Int[Array, " B"], valid_pixels: Int[Array, " B"]
) -> Float32[Array, "B pixels cells"]:
    """The weight of each cell in each pixel along one axis."""
    inside, total = (valid.astype(jnp.float32)[:, None] for valid in (valid_cells, valid_pixels))
    place = (jnp.arange(pixels, dtype=jnp.float32)[None] + 0.5) * inside / total - 0.5
    place = jnp.clip(place, 0.0, inside - 1)[..., None]
    cell = jnp.arange(cells, dtype=jnp.float32)[None, None]
    return jnp.maximum(1.0 - jnp.abs(place - cell), 0.0)


def sample_logits(logits: np.ndarray, size: tuple[int, int], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Some pixels of upsampled mask logits, in numpy: `upsample` at the pixels (row, column) of every pair.

    Args:
      logits: [rows, columns] float32, the valid cells of one mask.
      size: (height, width) in pixels to which the mask is upsampled.
      rows: [h] int, in 0 to height - 1.
      columns: [w] int, in 0 to width - 1.

    Returns:
      [h, w] float32.
    """
    (top, bottom, down), (left, right, along) = (
        _between(cells, pixels, wanted)
        for cells, pixels, wanted in zip(logits.shape, size, (rows, columns), strict=True)
    )
    # columns first: there are fewer values to take one by one
    wide = logits[:, left] + (logits[:, right] - logits[:, left]) * along
    return wide[top] + (wide[bottom] - wide[top]) * down[:, None]


def _between(cells: int, pixels: int, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two cells that a pixel lies between along one axis, and the weight of the second."""
    place = np.clip(
        (wanted.astype(np.float32) + np.float32(0.5)) * np.float32(cells / pixels) - np.float32(0.5), 0, None
    )
    first = np.minimum(place.astype(np.int64), cells - 1)
    return first, np.minimum(first + 1, cells - 1), (place - first).astype(np.float32)


def nearest_pixels(pixels: int, wanted: int) -> np.ndarray:
    """The pixel of ``pixels`` that each of ``wanted`` pixels shows: the nearest as in PyTorch, [wanted] int64."""
    return np.arange(wanted) * pixels // wanted


def nearest_centers(pixels: int, wanted: int) -> np.ndarray:
    """The pixel of ``pixels`` that each of ``wanted`` pixels shows: the nearest centre as in PIL, [wanted] int64."""
    return (2 * np.arange(wanted) + 1) * pixels // (2 * wanted)
