"""What one more row adds to the time of a pass, measured while the engine works."""

from __future__ import annotations

# Passes with more rows are bound by other things, and are no drafts.
_MAX_ROWS = 32
# The first ones bring the weights into memory.
_NUM_WARMING = 2
# What the newest pass weighs; and how much of one that took surprisingly long counts, as a machine
# does many things.
_WEIGHT = 1 / 32
_MAX_SURPRISE = 3.0
# Until it is measured, and again when that was long ago: a pass takes as long as so many rows more.
_PRIOR_ROWS = 16.0
_PRIOR_WEIGHT = 1.0


class RowCost:
    """A line through the times of the last passes over their rows, the newest weighing most.

    Where it is wrong nothing is but the speed.
    """

    def __init__(self) -> None:
        self._num_passes = 0
        self._mean_rows = self._mean_s = 0.0
        self._variance = self._covariance = 0.0  # of rows; of rows and seconds

    def record(self, num_rows: int, seconds: float) -> None:
        """A pass of that many rows has taken so long."""
        if num_rows > _MAX_ROWS:
            return
        self._num_passes += 1
        if self._num_passes <= _NUM_WARMING + 1:
            self._mean_rows, self._mean_s = float(num_rows), seconds
            return
        seconds = min(seconds, _MAX_SURPRISE * self._expected_s(num_rows))
        more_rows, more_s = num_rows - self._mean_rows, seconds - self._mean_s
        self._mean_rows += _WEIGHT * more_rows
        self._mean_s += _WEIGHT * more_s
        self._variance += _WEIGHT * (more_rows * more_rows - self._variance)
        self._covariance += _WEIGHT * (more_rows * more_s - self._covariance)

    def share(self, num_rows: int) -> float:
        """What one more row adds to a pass of so many, as a share of its time: 0 to 1."""
        expected_s = self._expected_s(num_rows)
        return min(self._row_s / expected_s, 1.0) if expected_s else 1 / (_PRIOR_ROWS + num_rows)

    @property
    def _row_s(self) -> float:
        if not self._mean_rows:
            return 0.0
        prior_s = self._mean_s / (_PRIOR_ROWS + self._mean_rows)
        measured_s = (self._covariance + _PRIOR_WEIGHT * prior_s) / (self._variance + _PRIOR_WEIGHT)
        return min(max(measured_s, 0.0), self._mean_s / self._mean_rows)

    def _expected_s(self, num_rows: int) -> float:
        return max(self._mean_s + self._row_s * (num_rows - self._mean_rows), self._row_s)
