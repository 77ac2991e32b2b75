"""Open the splits of a configuration's data set, compare them, and give both the same labels."""

import hashlib
from collections.abc import Sequence

import numpy as np

from detr_jax.config import Config, DataConfig, FolderConfig
from detr_jax.data.annotated import AnnotatedDataset
from detr_jax.data.comparison import compare_splits
from detr_jax.data.finding import find_layout
from detr_jax.data.images import exif_rule
from detr_jax.data.labelling import check_classes, give_labels
from detr_jax.data.labels import TrainedLabels
from detr_jax.data.layouts import Layout, meaning
from detr_jax.data.own_sources import check_objects, errors_of, is_own
from detr_jax.data.source import DataError, Faults, Source, complete_source
from detr_jax.wording import counted


def open_source(config: Config, split: str, *, strict: bool = True, trained: TrainedLabels | None = None) -> Source:
    """One split of the data set of a configuration, "train" or "val".

    With ``data.on_error="skip"``, training images that cannot be opened are dropped and counted.

    Args:
      config: names the data set. If a folder has no splits and ``data.val_share`` is 0, "val" is the whole folder.
      split: "train" or "val".
      strict: raise on errors in the data. If False, entries with errors are dropped and counted in the source's
        ``faults``.
      trained: what the labels of a trained model mean. Without it, and with ``strict``, labels are checked against
        ``model.num_classes`` if it is not 0.

    Raises:
      ConfigError: a field has no effect on data of this kind.
      DataError: the data cannot be used, has more images that cannot be opened than ``data.max_skipped`` allows, or has
        labels for which ``model.num_classes`` is too small.
    """
    source = _checked(_Opener(config, strict).open(split, alone=True), config, strict)
    give_labels([source], trained)
    if strict and trained is None and config.model.num_classes:
        check_classes(source, config.model.num_classes)
    return source


def open_splits(config: Config, *, trained: TrainedLabels | None = None) -> tuple[Source, Source]:
    """The training and the validation split, compared with each other. `open_source` describes the arguments.

    Raises:
      ConfigError: as in `open_source`.
      DataError: as in `open_source`, or if the splits contradict each other. For example, an id has two names.
    """
    opener = _Opener(config, True)
    train, val = (_checked(opener.open(split), config, True) for split in ("train", "val"))
    compare_splits(train, val)
    opener.note_unlisted([train, val])
    val.faults.raise_first()
    give_labels([train, val], trained)
    if config.model.num_classes:
        check_classes(train, config.model.num_classes)
        check_classes(val, config.model.num_classes)
    return train, val


def open_to_check(config: Config, splits: Sequence[str]) -> dict[str, Source | DataError]:
    """Each split with its faults counted, or the error that prevented opening it. Two splits are also compared."""
    opener = _Opener(config, False)
    opened: dict[str, Source | DataError] = {}
    for split in splits:
        try:
            opened[split] = _checked(opener.open(split), config, False)
        except DataError as error:
            opened[split] = error
    sources = [source for source in opened.values() if not isinstance(source, DataError)]
    if len(sources) == 2:
        compare_splits(*sources)
    opener.note_unlisted(sources)
    give_labels(sources, None)
    return opened


class _Opener:
    """Opens the splits of one data set. Data that both splits share is read once."""

    def __init__(self, config: Config, strict: bool):
        self.data = data = config.data
        self.num_classes = config.model.num_classes
        self.strict = strict
        self.layout = find_layout(data)
        self.source = data.sources[data.dataset if self.layout is None else self.layout.kind]
        self._whole: AnnotatedDataset | None = None

    def open(self, split: str, *, alone: bool = False) -> Source:
        """Opens a split.

        With ``alone``, the other split is not needed, so "val" may be a whole folder without splits.
        """
        data, layout = self.data, self.layout
        if layout is None:
            with errors_of(self.source, data.dataset):
                opened = (self.source.open if self.strict else self.source.open_to_check)(split, data)
                source = complete_source(opened, f"data.sources[{data.dataset!r}]")
            return self._checked(source)
        val = layout.find("val", data.val_split)
        if split == "val" and val is not None:
            source = self._read(layout, val, split)
            if data.val_share:
                doubt = f"data.val_share={data.val_share} has no effect, because the data set has the split {val!r}."
                source.faults.doubts.append(doubt)
            return source
        train = layout.find("train", data.train_split)
        if train is None:
            if split == "val" and alone:
                raise layout.lacks_validation()
            there = ", ".join(layout.splits)
            raise DataError(
                f"{layout.sentence}, and has no split for training (its splits are {there}): set data.train_split, or "
                "add a folder 'train'."
            )
        if val is None and data.val_share:
            self._whole = self._whole or self._read(layout, train, split)
            return _part(self._whole, data, split)
        if split == "train" or (alone and meaning(train) is None):
            return self._read(layout, train, split)
        raise layout.lacks_validation()

    def note_unlisted(self, opened: Sequence[Source]) -> None:
        """Notes files of a folder that belong to none of its splits."""
        if self.layout is not None and isinstance(self.source, FolderConfig):
            self.source.note_unlisted(self.layout, opened)

    def _checked(self, source: Source) -> Source:
        """A data set of the user's own with its objects checked."""
        if is_own(source):
            check_objects(source, self.num_classes, masks=self.data.masks)
            if self.strict:
                source.faults.raise_first()
        return source

    def _read(self, layout: Layout, name: str, split: str) -> AnnotatedDataset:
        assert isinstance(self.source, FolderConfig)
        data = self.data
        skip = self.strict and split == "train" and data.on_error == "skip"
        rules = {"exif": exif_rule(data), "max_level": data.max_level, **({"masks": True} if data.masks else {})}
        with errors_of(self.source, layout.kind):
            source = self.source.read(layout.splits[name], strict=self.strict, skip=skip, **rules)
        source.origin = layout.sentence
        return source


def _part(source: AnnotatedDataset, data: DataConfig, split: str) -> AnnotatedDataset:
    """The training or the validation images of a data set without splits. The training part keeps all faults.

    Raises:
      DataError: there are fewer than two images with different names.
    """
    names = [source.file_name(index).replace("\\", "/").rpartition("/")[2] for index in range(len(source))]
    shares = np.array([share_of(name) for name in names])
    lowest, highest = shares.min(initial=1), shares.max(initial=0)
    if lowest == highest:
        raise DataError(
            f"data.val_share={data.val_share} needs at least two image files with different names, and "
            f"{source.faults.where} has {counted(len(names), 'image file')}: add images, or set data.val_split."
        )
    held_out = ((shares < data.val_share) | (shares == lowest)) & (shares != highest)  # neither part is empty
    if split == "train":
        return source.select(~held_out)
    part = source.select(held_out, Faults(f"{source.faults.where}, held out"))
    share = f"{held_out.sum()} of {counted(len(names), 'image')}"
    part.origin = f"{source.origin}, and data.val_share={data.val_share} holds out {share}"
    part.understood = ""
    return part


def share_of(file_name: str) -> float:
    """A number in [0, 1) computed from a file name. Images below ``data.val_share`` are validation images."""
    return int.from_bytes(hashlib.blake2b(file_name.encode(errors="surrogateescape"), digest_size=6).digest()) / 2**48


def _checked(source: Source, config: Config, strict: bool) -> Source:
    data = config.data
    dropped = source.faults.left_out
    if dropped > data.max_skipped * (listed := dropped + len(source)):
        raise DataError(
            f"{dropped} of {listed} training images cannot be opened, which is more than data.max_skipped="
            f"{data.max_skipped} allows: repair or remove them, or raise data.max_skipped. "
            + " ".join(source.faults.sentences())
        )
    if not source.max_objects and not data.allow_empty and not data.generated and not source.faults.errors:
        noted = "; ".join(f"{kind}: {number}" for kind, number in (source.faults.notes + source.faults.counts).items())
        source.faults.error(
            "splits without objects",
            f"the split has {counted(len(source), 'image')} but no object to train on{f' ({noted})' if noted else ''}: "
            "correct the annotations, or set data.allow_empty=True if this is intended",
        )
        if strict:
            source.faults.raise_first()
    return source
