"""The TensorBoard files of a run. They have every point of ``metrics.jsonl``, also if the run was killed."""

import os
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class Board:
    """Writes scalars for TensorBoard.

    The writer buffers points, so that a killed run loses its last ones. The next start writes them again.
    """

    def __init__(self, folder: Path, lines: Sequence[Mapping[str, Any]]):
        """Opens a new file.

        Args:
          folder: the folder of the files.
          lines: the lines of ``metrics.jsonl`` that stay. Points of later steps disappear from TensorBoard, and points
            that it does not have are written.
        """
        there = points(folder)
        last = lines[-1]["step"] if lines else -1
        wrong = {step for steps in there.values() for step in steps if step > last}
        wrong |= {line["step"] for line in lines if any(line["step"] not in there[name] for name, _ in _scalars(line))}
        first = min(wrong, default=None)
        # TensorBoard drops the points from this step on that earlier files have
        suffix = f".{time.time_ns()}"  # another start in the same second has another file
        self._writer = SummaryWriter(str(folder), purge_step=first, filename_suffix=suffix)
        if first is not None:
            for line in lines:
                if line["step"] >= first:
                    self.add(line["step"], line)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds the points of a step. Values that are None are left out."""
        for name, value in _scalars(values):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes the buffered points and closes the file."""
        self._writer.close()


def points(folder: Path) -> defaultdict[str, set[int]]:
    """The steps of the points that TensorBoard shows for each name."""
    found: defaultdict[str, set[int]] = defaultdict(set)
    for file in sorted(path for path in folder.glob("events.out.tfevents.*") if path.is_file()):
        for event in _events(file):
            if event.session_log.status == SessionLog.START:
                for name, steps in found.items():
                    found[name] = {step for step in steps if step < event.step}
            for value in event.summary.value:
                found[value.tag].add(event.step)
    return found


def _events(file: Path) -> Iterator[Event]:
    """The events of a file, up to the first that is damaged: length, its checksum, the event, its checksum."""
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        while len(header := opened.read(12)) == 12:
            (length,) = struct.unpack("<Q", header[:8])
            if opened.tell() + length + 4 > size:
                return
            event = Event()
            try:
                event.ParseFromString(opened.read(length))
            except Exception:  # protobuf's DecodeError
                return
            opened.read(4)
            yield event


def _scalars(values: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    return ((name, value) for name, value in values.items() if name != "step" and value is not None)
