"""The time line: bytes are neither lost nor put elsewhere as its slices grow."""

from __future__ import annotations

import threading

import pytest

from hearing import Heard
from reshard.ops.timeline import Timeline, WorkStretch


def test_slices_grow_and_keep_their_bytes() -> None:
    stretch = WorkStretch("writing", 5.0, 5.0)
    for i in range(1000):
        stretch.add(1, 5.0 + i / 100, 10)
    stretch.add(2, 14.0, 3)
    stretch.add(2, 14.995, 7)
    stretch.stop(15.0)
    first, second = stretch.rows()
    assert len(first) == len(second) <= 241
    assert (sum(first), sum(second)) == (10_000, 10)
    per_slice = stretch.slice_s * 1000
    assert all(abs(n - per_slice) <= 20 for n in first[1:-3])


def test_a_long_end_has_no_more_slices() -> None:
    """A disk that takes a quarter of an hour to say that it has the bytes makes no million slices of nothing."""
    stretch = WorkStretch("writing", 0.0, 0.0)
    stretch.add(1, 0.1, 100)
    stretch.stop(900.0)
    (row,) = stretch.rows()
    assert len(row) <= 241
    assert (sum(row), stretch.stop_s) == (100, 900.0)


def test_bytes_are_spread_over_the_time_that_they_took() -> None:
    stretch = WorkStretch("writing", 0.0, 0.0)
    stretch.add(1, 0.0995, 100)
    stretch.add(1, 0.1095, 100)
    stretch.stop(0.11)
    (row,) = stretch.rows()
    assert row[:99] == (1,) * 99
    assert sum(row[100:]) == pytest.approx(91, abs=9)
    assert sum(row) == 200


def test_it_hears_every_thread_and_passes_on() -> None:
    listener = Heard()
    line = Timeline(listener)
    line.start("writing", 30)
    line.start_files(2)
    for _ in range(2):
        worker = threading.Thread(target=line.advance, args=(10,))
        line.advance(5)
        worker.start()
        worker.join()
    line.finish_files(2)
    line.end()
    (stretch,) = line.stretches
    assert listener.heard == [("writing", 30), ("files", 2), 5, 10, 5, 10, ("done", 2), "end"]
    assert sum(map(sum, stretch.rows())) == 30
    assert stretch.stop_s >= stretch.start_s >= 0
