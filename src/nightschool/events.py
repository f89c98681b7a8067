"""What long work says about itself while it runs.

Training, exams, conversions and downloads are generators of these. They print nothing: the CLI draws
them, a run's log stores them, and a caller may stop between any two.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, TypeVar


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of a task; total is None while it is not known. Bytes are drawn as sizes."""

    task: str
    done: int
    total: int | None
    unit: Literal["", "bytes"] = ""


@dataclass(frozen=True)
class Notice:
    """One sentence worth keeping on the screen: a choice that was made, a file that was written."""

    text: str


@dataclass(frozen=True)
class TrainStep:
    """One optimiser step: mean loss in nats over its target tokens, the share of them predicted first.

    `ends_epoch` is the number of the epoch that it ends, 0 in the midst of one.
    """

    step: int
    total: int
    loss: float
    tokens_per_s: float
    eta_s: float
    accuracy: float = 0.0
    lr: float = 0.0
    tokens: int = 0
    ends_epoch: int = 0


@dataclass(frozen=True)
class Validation:
    """What the held-out lessons say after a step; loss and accuracy as in TrainStep."""

    step: int
    loss: float
    accuracy: float


Event = Progress | Notice | TrainStep | Validation

Result = TypeVar("Result")


def result_of(
    work: Generator[Event, None, Result], heard: Callable[[Event], object] = lambda event: None
) -> Result:
    """Do work to its end and return what comes of it; `heard` gets each event."""
    while True:
        try:
            heard(next(work))
        except StopIteration as end:
            result: Result = end.value
            return result
