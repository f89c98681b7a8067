"""The same work for many things, some at a time, as events.

Nothing is begun ahead of the reader: while nobody asks for the next event, only what is under way is
finished. Work can so be held up, or closed, between any two events.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

from nightschool.events import Event, Progress

Thing = TypeVar("Thing")
Made = TypeVar("Made")


def side_by_side(
    work: Callable[[Thing], Made], things: Sequence[Thing], *, at_once: int, task: str
) -> Generator[Event, None, list[Made]]:
    """Do the same for many things, `at_once` of them at a time; the value is what came of each, in order."""
    made: dict[int, Made] = {}
    waiting = iter(enumerate(things))
    with ThreadPoolExecutor(at_once) as pool:
        running: dict[Future[Made], int] = {}
        while len(made) < len(things):
            for number, thing in islice(waiting, at_once - len(running)):
                running[pool.submit(work, thing)] = number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                made[running.pop(future)] = future.result()
            yield Progress(task, len(made), len(things))
    return [made[number] for number in range(len(things))]
