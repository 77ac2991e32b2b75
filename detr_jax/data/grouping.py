"""Which images of an epoch share a batch, so that full batches of one canvas each waste little on padding."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from detr_jax.data.buckets import Bucket

_GAP = 5e-3  # share of the padded pixels by which a grouping may miss the best one
_NODES = 50  # a limit of the search that, unlike one in seconds, gives the same grouping everywhere


def group(
    sizes: np.ndarray, buckets: Sequence[Bucket], batch_size: int, rng: np.random.Generator
) -> list[tuple[Bucket, np.ndarray]]:
    """Full batches of images that share a canvas, with as little padding as the batch size allows.

    Images that make no full batch on their own smallest canvas go where they cost least: an integer program finds
    how many batches each canvas gets. What is left of a division by ``batch_size`` is left out, drawn evenly.
    Where the rest fits on no common canvas, some of its images are left out and others used twice, by chance in
    proportion to their number, so that no shape is used less often than others.

    Args:
      sizes: [n, 2] int, (height, width) of the images in pixels; some bucket holds each.
      buckets: canvases (height, width) in pixels.
      batch_size: images in a batch.
      rng: decides which images meet, and in which order batches come.

    Returns:
      ``n // batch_size`` batches, at least one: the canvas, and [batch_size] indices into ``sizes``.
    """
    steps = max(1, len(sizes) // batch_size)
    order = rng.permutation(len(sizes))[: steps * batch_size]
    batches: list[tuple[Bucket, np.ndarray]] = []
    rests: list[tuple[Bucket, np.ndarray]] = []
    for bucket, placed in _placed(sizes, order, buckets, batch_size):
        images = rng.permutation(placed)
        full = len(images) // batch_size * batch_size
        batches += [(bucket, images[i : i + batch_size]) for i in range(0, full, batch_size)]
        if full < len(images):
            rests.append((bucket, images[full:]))
    while len(batches) < steps:
        numbers = np.array([len(images) for _, images in rests])
        bucket, images = rests.pop(rng.choice(len(rests), p=numbers / numbers.sum()))
        fitting = np.flatnonzero((sizes <= bucket).all(axis=1))
        missing = batch_size - len(images)
        batches.append((bucket, np.append(images, rng.choice(fitting, missing, replace=missing > len(fitting)))))
    return [batches[i] for i in rng.permutation(len(batches))]


def group_all(sizes: np.ndarray, buckets: Sequence[Bucket], batch_size: int) -> list[tuple[Bucket, np.ndarray]]:
    """Batches as those of `group`, but of every image once and in order; the last of a canvas may not be full."""
    return [
        (bucket, images[i : i + batch_size])
        for bucket, placed in _placed(sizes, np.arange(len(sizes)), buckets, batch_size)
        for images in [np.sort(placed)]
        for i in range(0, len(images), batch_size)
    ]


def _placed(
    sizes: np.ndarray, order: np.ndarray, buckets: Sequence[Bucket], batch_size: int
) -> list[tuple[Bucket, np.ndarray]]:
    """Each canvas with the images (of the indices ``order`` into ``sizes``) that go on it."""
    holds = (np.asarray(buckets) >= sizes[order, None]).all(axis=-1)  # [images, buckets]
    kinds, kind_of = np.unique(holds, axis=0, return_inverse=True)  # images that fit the same canvases are alike
    kind_of = kind_of.ravel()
    steps = -(-len(order) // batch_size)
    shares = _shares(kinds, np.bincount(kind_of), np.prod(buckets, axis=1), batch_size, steps)
    parts = [np.split(order[kind_of == kind], np.cumsum(share)[:-1]) for kind, share in enumerate(shares)]
    return [(bucket, np.concatenate(images)) for bucket, images in zip(buckets, zip(*parts, strict=True), strict=True)]


def _shares(kinds: np.ndarray, counts: np.ndarray, areas: np.ndarray, batch_size: int, steps: int) -> np.ndarray:
    """How many images of each kind go on each canvas, [kinds, buckets] int.

    Minimises the canvases' pixels over whole numbers of batches, as few of them as the images allow.

    Args:
      kinds: [kinds, buckets] bool, the canvases that hold each kind of image.
      counts: [kinds] int, images of each kind.
      areas: [buckets] int, pixels of a canvas.
      batch_size: images in a batch.
      steps: batches wanted.
    """
    kind, bucket = np.nonzero(kinds)
    pairs, (num_kinds, num_buckets) = len(kind), kinds.shape
    every = np.arange(num_buckets)
    entries = [  # row, column, value; the columns are the images of a kind on a canvas, then the batches of a canvas
        (kind, np.arange(pairs), np.ones(pairs)),  # each image has its place,
        (num_kinds + bucket, np.arange(pairs), np.ones(pairs)),  # which a batch of its canvas offers,
        (num_kinds + every, pairs + every, np.full(num_buckets, -batch_size)),
        (np.full(num_buckets, num_kinds + num_buckets), pairs + every, np.ones(num_buckets)),  # of so many batches
    ]
    rows, columns, values = map(np.concatenate, zip(*entries, strict=True))
    matrix = sparse.csr_array((values, (rows, columns)))
    for total in range(steps, steps + num_buckets):
        least = np.concatenate([counts, np.full(num_buckets, -np.inf), [total]])
        most = np.concatenate([counts, np.zeros(num_buckets), [total]])
        found = milp(
            np.concatenate([np.zeros(pairs), areas / areas.max()]),
            integrality=np.ones(pairs + num_buckets),
            bounds=Bounds(0, np.inf),
            constraints=LinearConstraint(matrix, least, most),
            options={"mip_rel_gap": _GAP, "node_limit": _NODES},
        )
        if found.x is not None:
            shares = np.zeros(kinds.shape, np.int64)
            shares[kind, bucket] = np.rint(found.x[:pairs])
            return shares
    return counts[:, None] * (np.where(kinds, areas, np.inf).argmin(axis=1)[:, None] == every)
