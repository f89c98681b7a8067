"""Draw the events of long work on stderr: live bars in a terminal, a line now and then in a log.

The only file that knows about progress bars. What the work returns is returned; Ctrl-C closes it and goes up.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any, TypeVar, overload

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from nightschool.download import size_text
from nightschool.events import Event, Notice, Progress, TrainStep, Validation

LINE_EVERY_S = 10.0  # in a log
FRAMES_PER_S = 4  # drawing must not take time from training
CURVE = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 16

Result = TypeVar("Result")


@overload
def show(  # type: ignore[overload-overlap]  # the more special one comes first
    events: Generator[Event, Any, Result], console: Console | None = None
) -> Result: ...
@overload
def show(events: Iterable[Event], console: Console | None = None) -> None: ...
def show(events: Iterable[Event], console: Console | None = None) -> Any:
    """Run the work to its end, drawing what it says of itself, and return what it returns."""
    console = console or Console(stderr=True)
    live = console.is_terminal and not console.is_dumb_terminal
    with _Live(console) if live else _Log(console) as screen:
        iterator = iter(events)
        try:
            while True:
                screen.draw(next(iterator))
        except StopIteration as end:
            return end.value
        finally:
            _close(iterator)


def _close(iterator: Iterator[Event]) -> None:
    """Now and not when the garbage is collected: closing is how work is told to save itself."""
    if isinstance(iterator, Generator):
        iterator.close()


class _Screen:
    """What both ways of drawing share: notices and measurements are lines."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __enter__(self) -> "_Screen":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def draw(self, event: Event) -> None:
        match event:
            case Notice(text):
                self.line(text)
            case Validation(step, loss, accuracy):
                self.line(f"held out, step {step}: loss {loss:.3f}, {accuracy:.0%} of tokens right")
            case Progress() | TrainStep():
                self.advance(event)

    def line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(self, event: Progress | TrainStep) -> None:
        raise NotImplementedError


class _Log(_Screen):
    """One line at the start of a task, one every few seconds, one at its end."""

    task = ""
    last_s = 0.0

    def advance(self, event: Progress | TrainStep) -> None:
        task = "training" if isinstance(event, TrainStep) else event.task
        done = (event.step if isinstance(event, TrainStep) else event.done) == event.total
        if task != self.task or done or time.monotonic() - self.last_s >= LINE_EVERY_S:
            self.task, self.last_s = task, time.monotonic()
            self.line(_in_a_log(event))


def _in_a_log(event: Progress | TrainStep) -> str:
    match event:
        case TrainStep(step, total, loss, tokens_per_s, eta_s):
            left = "" if step == total else f", {duration_text(eta_s)} left"
            return f"step {step}/{total}: loss {loss:.3f}, {tokens_per_s:,.0f} tokens/s{left}"
        case Progress(task, done, 1, _):
            return f"{task}: done" if done else f"{task} …"
        case Progress(task, done, total, unit):
            return f"{task}: {_amount(done, total, unit)}"


def _amount(done: float, total: float | None, unit: str) -> str:
    as_text = size_text if unit == "bytes" else lambda number: f"{number:,.0f}"
    return as_text(done) if total is None else f"{as_text(done)} of {as_text(total)}"


class _Live(_Screen):
    """A bar for the task of the moment; the last one stays."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.bars = Bars(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=26)),
            BarColumn(bar_width=16),
            _Details(),
            console=console,
            refresh_per_second=FRAMES_PER_S,
        )
        self.task: tuple[str, TaskID] | None = None
        self.losses: list[float] = []

    def __enter__(self) -> "_Live":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def advance(self, event: Progress | TrainStep) -> None:
        if isinstance(event, TrainStep):
            self.losses.append(event.loss)
            self.update("training", event.step, event.total, event=event, curve=curve(self.losses))
        else:
            self.update(event.task, event.done, event.total, event=event, unit=event.unit)

    def update(self, name: str, done: int, total: int | None, **fields: Any) -> None:
        if self.task is None or self.task[0] != name:
            if self.task:
                self.bars.remove_task(self.task[1])
            self.task = name, self.bars.add_task(name, total=total, **fields)
        self.bars.update(self.task[1], completed=done, total=total, **fields)


class _Details(ProgressColumn):
    """What stands to the right of a bar."""

    def render(self, task: Task) -> Text:
        match task.fields["event"]:
            case TrainStep(step, total, loss, tokens_per_s, eta_s):
                parts = [f"{step}/{total}", f"loss {loss:.3f}", f"{tokens_per_s:,.0f} tokens/s"]
                left: float | None = eta_s
            case Progress(_, done, total, unit):
                parts, left = [_amount(done, total, unit)], task.time_remaining
        if left and not task.finished:
            parts.append(f"{duration_text(left)} left")
        if task.fields.get("unit") == "bytes" and task.speed:
            parts.append(f"{size_text(task.speed)}/s")
        parts.append(task.fields.get("curve", ""))  # last: what a narrow window cuts off
        return Text("  ".join(parts), no_wrap=True, overflow="ellipsis")


def curve(values: list[float]) -> str:
    """The course of the values so far in one line: means over equal spans, lowest to highest."""
    width = min(len(values), CURVE_WIDTH)
    spans = [values[len(values) * i // width : len(values) * (i + 1) // width] for i in range(width)]
    means = [sum(span) / len(span) for span in spans]
    low, high = min(means), max(means)
    steps = [round((mean - low) / ((high - low) or 1.0) * (len(CURVE) - 1)) for mean in means]
    return "".join(CURVE[step] for step in steps)


def duration_text(seconds: float) -> str:
    """A duration for people: 8 s, 2 min 10 s, 1 h 05 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
