"""The TensorBoard files of a run. They have every point of ``metrics.jsonl``, also if the run was killed."""

import os
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from detr_jax.training.appended_file import AppendedFile


class Board:
    """Writes scalars for TensorBoard. Points that were lost, for example in a crash, are written at the next start."""

    def __init__(self, folder: Path, lines: Sequence[Mapping[str, Any]]):
        """Opens a new file, and writes the points that are missing.

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
        now = time.time_ns()  # the name must be new, and come after those of earlier files
        self._file = AppendedFile(folder / f"events.out.tfevents.{now // 10**9:010d}.{now}.{socket.gethostname()}")
        self._add(Event(file_version="brain.Event:2"))
        if first is not None:
            self._add(Event(session_log=SessionLog(status=SessionLog.START), step=first))
            for line in lines:
                if line["step"] >= first:
                    self.add(line["step"], line)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds the points of a step. Values that are None are left out.

        Raises:
          WorkdirError: they cannot be written. The next call tries it again.
        """
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in _scalars(values)])
        self._add(Event(summary=summary, step=step))

    def flush(self) -> None:
        """Writes the points that could not be written before; raises the errors of `add`."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        self._file.append(length + _checksum(length) + content + _checksum(content))


def _checksum(content: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(content))


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
