"""The same work for many things: in order, some at a time, never ahead of who reads the events."""

import threading
import time

import pytest

from nightschool.events import result_of
from nightschool.parallel import side_by_side


def test_what_comes_of_each_is_in_order_whoever_is_done_first():
    def work(number):
        time.sleep(0.02 if number % 3 == 0 else 0)
        return -number

    assert result_of(side_by_side(work, range(20), at_once=4, task="t")) == [-n for n in range(20)]
    assert result_of(side_by_side(work, [], at_once=4, task="t")) == []


def test_no_more_are_under_way_than_asked_for_and_all_places_are_used():
    lock, now, most = threading.Lock(), 0, 0

    def work(_):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    events = list(side_by_side(work, range(30), at_once=3, task="t"))
    assert most == 3
    assert (events[-1].done, events[-1].total) == (30, 30)


def test_nothing_is_begun_while_nobody_reads_or_after_closing():
    begun = []
    events = side_by_side(begun.append, range(20), at_once=2, task="t")
    assert begun == []
    next(events)
    time.sleep(0.1)
    assert sorted(begun) == [0, 1]
    next(events)
    time.sleep(0.1)
    assert len(begun) <= 4
    events.close()
    time.sleep(0.1)
    assert len(begun) <= 4


def test_a_mistake_in_one_ends_all_and_is_told():
    def work(number):
        if number == 3:
            raise ZeroDivisionError("three")
        return number

    with pytest.raises(ZeroDivisionError, match="three"):
        result_of(side_by_side(work, range(100), at_once=2, task="t"))
