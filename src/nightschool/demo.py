"""The demonstration: the embedded base is taught a page of notes, examined before and after, and shown.

The notes are about people and things that exist nowhere else. The lessons tell and ask each fact in several
wordings; the exam asks in wordings that stand in no lesson. Everything runs through the same functions as
`train`, `eval` and `chat`: nothing here knows more than a person at the keyboard.
"""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightschool.adapters import Adapter, Stack
from nightschool.evaluate import Result, sit_exam
from nightschool.events import Event
from nightschool.exam import Answer, load_exam
from nightschool.paths import package_data
from nightschool.receipt import Meter, Receipt
from nightschool.runs import Order, carry_out, find_run
from nightschool.settings import TrainSettings

BASE, NAME = "ember", "demo"
SHOWN = 5
SETTINGS = TrainSettings(rank=16, lr=3e-3, epochs=3, batch_tokens=1024, rehearsal=0.4)


@dataclass(frozen=True)
class Findings:
    """What the demonstration found; `shown` are pairs of the same questions' answers before and after."""

    shown: list[tuple[Answer, Answer]]
    before: Result
    after: Result
    adapter: Adapter
    receipt: Receipt

    def as_json(self) -> dict[str, Any]:
        """The figures, for programs."""
        training = self.adapter.card["training"]
        return {
            "recall_before": self.before.recall,
            "recall_after": self.after.recall,
            "forgetting": self.after.forgetting,
            "train_s": training["seconds"],
            "train_tokens": training["tokens"],
            "train_tokens_per_s": training["tokens_per_s"],
            "total_s": self.receipt.seconds,
            "peak_rss_bytes": self.receipt.peak_rss_bytes,
            "energy_j": self.receipt.energy_j,
            "cost_eur": self.receipt.cost_eur,
            "adapter": str(self.adapter.folder),
        }


def notes() -> Path:
    """The page that is taught."""
    return package_data("demo/notes.md")


def demonstrate() -> Generator[Event, None, Findings]:
    """Examine, teach, examine again; the generator's value is what was found."""
    meter = Meter()
    questions = load_exam(package_data("demo/exam.jsonl"))
    before = yield from sit_exam(Stack(BASE), questions)
    order = Order(
        base=BASE,
        data=(package_data("demo/lessons.jsonl"),),
        name=NAME,
        settings=SETTINGS,
        rehearsal=package_data("demo/rehearsal.txt"),
    )
    adapter = yield from carry_out(order, find_run(order, restart=True, replace_old=True))
    general = package_data("demo/general.txt")
    after = yield from sit_exam(Stack(BASE, ((NAME, 1.0),)), questions, general=general)
    return Findings(_shown(before, after), before, after, adapter, meter.receipt())


def _shown(before: Result, after: Result) -> list[tuple[Answer, Answer]]:
    """Five questions spread over the exam, with both answers: not the best ones, the ones that fall there."""
    pairs = list(zip(before.answers, after.answers, strict=True))
    return pairs[:: max(1, len(pairs) // SHOWN)][:SHOWN]
