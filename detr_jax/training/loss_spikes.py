"""Finds steps whose loss is far above that of the steps before them."""

import collections
import statistics

_STEPS = 100  # of which the median is taken
_LEAST = 20  # steps before a spike can be found
_FACTOR = 3.0


class LossSpikes:
    """Compares each loss with the median of up to 100 losses before it."""

    def __init__(self) -> None:
        self._losses: collections.deque[float] = collections.deque(maxlen=_STEPS)

    def add(self, loss: float) -> float | None:
        """Adds the loss of a step.

        Returns:
          Its ratio to the median if the ratio is above 3, else None. The first 20 steps are only collected.
        """
        ratio = None
        if len(self._losses) >= _LEAST and (median := statistics.median(self._losses)) > 0:
            ratio = loss / median
        self._losses.append(loss)
        return ratio if ratio is not None and ratio > _FACTOR else None
