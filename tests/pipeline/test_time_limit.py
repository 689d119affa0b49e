"""Work that does not look at the clock ends when its time is over, and nothing else does."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from mlflow_lipschitz.pipeline.time_limit import OutOfTime, time_limit


def test_work_without_an_end_is_ended() -> None:
    with pytest.raises(OutOfTime), time_limit(0.05):
        while True:
            pass


def test_work_that_is_done_is_left_alone_and_so_is_what_follows() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(0.05):
        done = sum(range(10))
    assert done == 45 and signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    time.sleep(0.1)
    assert signal.getsignal(signal.SIGALRM) == before


def test_an_error_of_the_work_is_its_own_and_ends_the_limit() -> None:
    with pytest.raises(KeyError), time_limit(60.0):
        raise KeyError("work")
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0


def test_no_time_is_no_time_and_not_forever() -> None:
    with pytest.raises(OutOfTime), time_limit(0.0):
        while True:
            pass


def test_another_thread_cannot_be_interrupted_and_is_not_refused() -> None:
    found: list[int] = []

    def work() -> None:
        with time_limit(0.001):
            time.sleep(0.05)
            found.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1]
