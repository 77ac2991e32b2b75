"""Which images of an epoch share a batch, so that full batches of one bucket each waste little on padding."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from detr_jax.data.buckets import Bucket

NO_IMAGE = -1
"""The index, or the id, of an image where a batch has a place but no image."""

_GAP = 5e-3  # share of the padded pixels by which a grouping may miss the best one
_NODES = 50  # a limit of the search that, unlike one in seconds, gives the same grouping everywhere


def group(
    sizes: np.ndarray, buckets: Sequence[Bucket], batch_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Full batches of images that share a bucket, with as little padding as the batch size allows.

    Images that make no full batch on their own smallest bucket go where they cost least (`_shares`). What is left of a
    division by ``batch_size`` is left out, drawn evenly. If the rest fits on no common bucket, some of its images are
    left out and others used twice, by chance in proportion to their number, so that no shape is used less often than
    others.

    Args:
      sizes: [n, 2] int, (height, width) of the images in pixels; some bucket holds each.
      buckets: (height, width) in pixels.
      batch_size: images in a batch.
      rng: decides which images meet, and in which order batches come.

    Returns:
      Of ``n // batch_size`` batches, at least one: the indices of their buckets [batches] int, and those of their
      images [batches, batch_size] int.
    """
    steps = max(1, len(sizes) // batch_size)
    order = rng.permutation(len(sizes))[: steps * batch_size]
    bucket_of: list[int] = []
    batches: list[np.ndarray] = []
    rests: list[tuple[int, np.ndarray]] = []
    for bucket, placed in enumerate(_placed(sizes, order, buckets, batch_size)):
        images = rng.permutation(placed)
        full = len(images) // batch_size
        batches.append(images[: full * batch_size].reshape(full, batch_size))
        bucket_of += [bucket] * full
        if full * batch_size < len(images):
            rests.append((bucket, images[full * batch_size :]))
    while len(bucket_of) < steps:
        numbers = np.array([len(images) for _, images in rests])
        bucket, images = rests.pop(rng.choice(len(rests), p=numbers / numbers.sum()))
        fitting = np.flatnonzero((sizes <= buckets[bucket]).all(axis=1))
        missing = batch_size - len(images)
        added = rng.choice(fitting, missing, replace=missing > len(fitting))
        batches.append(np.append(images, added)[None])
        bucket_of.append(bucket)
    shuffled = rng.permutation(steps)
    return np.array(bucket_of)[shuffled], np.concatenate(batches)[shuffled]


def group_all(sizes: np.ndarray, buckets: Sequence[Bucket], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Batches as those of `group`, but of every image once and in order.

    The last batch of a bucket may have fewer images: the index of an image that is missing is `NO_IMAGE`.
    """
    bucket_of: list[int] = []
    batches: list[np.ndarray] = []
    for bucket, placed in enumerate(_placed(sizes, np.arange(len(sizes)), buckets, batch_size)):
        number = -(-len(placed) // batch_size)
        rows = np.full(number * batch_size, NO_IMAGE)
        rows[: len(placed)] = np.sort(placed)
        batches.append(rows.reshape(number, batch_size))
        bucket_of += [bucket] * number
    return np.array(bucket_of), np.concatenate(batches)


def _placed(sizes: np.ndarray, order: np.ndarray, buckets: Sequence[Bucket], batch_size: int) -> list[np.ndarray]:
    """For each bucket, the images (of the indices ``order`` into ``sizes``) that go on it."""
    holds = np.all(np.asarray(buckets) >= sizes[order, None], axis=-1)  # [images, buckets]
    kinds, kind_of = _distinct_rows(holds)  # images that fit the same buckets are alike
    steps = -(-len(order) // batch_size)
    shares = _shares(kinds, np.bincount(kind_of), np.prod(buckets, axis=1), batch_size, steps)
    parts = [np.split(order[kind_of == kind], np.cumsum(share)[:-1]) for kind, share in enumerate(shares)]
    return [np.concatenate(images) for images in zip(*parts, strict=True)]


def _distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of [n, k] bool in lexicographic order, and for each row the index of its equal, [n] int.

    This is `numpy.unique` along an axis, by sorting numbers of eight columns at a time, which is many times faster.
    """
    first, rank = np.zeros(1, np.int64), np.zeros(len(rows), np.int64)
    for column in np.packbits(rows, axis=1).T:
        _, first, rank = np.unique(256 * rank + column, return_index=True, return_inverse=True)
    return rows[first], rank


def _shares(kinds: np.ndarray, counts: np.ndarray, areas: np.ndarray, batch_size: int, steps: int) -> np.ndarray:
    """How many images of each kind go on each bucket, [kinds, buckets] int.

    They make as few batches as possible, of as few pixels as possible to within `_GAP`. If there are many batches per
    bucket, one pass over the buckets finds such a grouping. Otherwise an integer program does.

    Args:
      kinds: [kinds, buckets] bool, the buckets that hold each kind of image.
      counts: [kinds] int, images of each kind.
      areas: [buckets] int, pixels of a bucket.
      batch_size: images in a batch.
      steps: batches wanted.
    """
    least = np.where(kinds, areas, np.inf).min(axis=1) @ counts / batch_size  # pixels, if all batches could be full
    for pull in (True, False):
        shares = _shares_in_one_pass(kinds, counts, areas, batch_size, pull)
        batches = -(-shares.sum(axis=0) // batch_size)
        if batches.sum() == steps and batches @ areas <= (1 + _GAP) * least:
            return shares
    found = _best_shares(kinds, counts, areas, batch_size, steps)
    return _on_smallest(kinds, counts, areas) if found is None else found


def _on_smallest(kinds: np.ndarray, counts: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Shares, as `_shares` returns them, with each image on the smallest bucket that holds it."""
    smallest = np.where(kinds, areas, np.inf).argmin(axis=1)
    return counts[:, None] * (smallest[:, None] == np.arange(len(areas)))


def _shares_in_one_pass(
    kinds: np.ndarray, counts: np.ndarray, areas: np.ndarray, batch_size: int, pull: bool
) -> np.ndarray:
    """Shares, as `_shares` returns them, from those of `_on_smallest` in one pass over the buckets.

    With ``pull``, each bucket from the largest on takes what its last batch lacks from the next smaller buckets.
    Without, each bucket from the smallest on gives what is beyond its full batches to the next larger buckets.
    """
    shares = _on_smallest(kinds, counts, areas)
    order = np.argsort(-areas if pull else areas, kind="stable")
    for position, bucket in enumerate(order):
        number = int((-1 if pull else 1) * shares[:, bucket].sum() % batch_size)
        for other in order[position + 1 :]:
            giving, taking = (other, bucket) if pull else (bucket, other)
            for kind in np.flatnonzero(kinds[:, taking] & (shares[:, giving] > 0)):
                moved = min(number, int(shares[kind, giving]))
                shares[kind, giving] -= moved
                shares[kind, taking] += moved
                number -= moved
    return shares


def _best_shares(
    kinds: np.ndarray, counts: np.ndarray, areas: np.ndarray, batch_size: int, steps: int
) -> np.ndarray | None:
    """Shares, as `_shares` returns them, by an integer program. None if it finds no grouping of full batches."""
    kind, bucket = np.nonzero(kinds)
    pairs, (num_kinds, num_buckets) = len(kind), kinds.shape
    every = np.arange(num_buckets)
    entries = [  # row, column, value; the columns are the images of a kind on a bucket, then the batches of a bucket
        (kind, np.arange(pairs), np.ones(pairs)),  # each image has its place,
        (num_kinds + bucket, np.arange(pairs), np.ones(pairs)),  # which a batch of its bucket offers,
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
    return None
