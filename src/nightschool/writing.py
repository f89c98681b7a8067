"""The write stage for one chunk: every writer writes, the model answers with it in view, the check judges."""

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import groupby

from nightschool.check import Item, Verdict, agreed, judge
from nightschool.engine import Engine
from nightschool.events import Event
from nightschool.parallel import side_by_side
from nightschool.settings import StudySettings
from nightschool.statements import statements
from nightschool.wordings import bank, names_in, whom
from nightschool.writer import (
    Talker,
    by_rules,
    by_words,
    open_book,
    plain_items,
    structured_items,
    views,
)

CREDULOUS = 8  # usual questions about one sentence, of some forty: whoever answers more answers anything
MOST = 0.6  # of a usual question's wordings must lead to the same answer
# Models with fewer weights than this write no JSON worth checking.
STRUCTURED_BYTES = 150 << 20


def write_chunk(
    engine: Engine, text: str, settings: StudySettings, *, teacher: Talker | None = None
) -> Generator[Event, None, list[Verdict]]:
    """All items about a chunk with their verdicts (the generator's value); same text, same items."""
    at_once = settings.slots
    items = by_rules(text)
    written: list[list[Item]] = yield from side_by_side(
        lambda view: plain_items(engine, view, count=settings.wordings, seed=settings.seed),
        views(text) if settings.wordings else [],
        at_once=at_once,
        task="writing questions",
    )
    plain = [item for group in written for item in group]
    if teacher or engine.base.stat().st_size >= STRUCTURED_BYTES:
        author, origin = teacher or engine, "teacher" if teacher else "model"
        tries = yield from side_by_side(
            lambda number: structured_items(author, text, seed=settings.seed + number, origin=origin),
            range(max(1, settings.wordings // 4)),
            at_once=at_once,
            task="writing items",
        )
        items += [item for group in tries for item in group]
    else:
        plain += yield from from_bank(engine, text, at_once=at_once)
        items += by_words(text, count=settings.by_words, seed=settings.seed)
    asked = [item for item in [*items, *plain] if not item.restates]
    replies = yield from side_by_side(
        lambda item: open_book((teacher if item.origin == "teacher" else None) or engine, item),
        asked,
        at_once=at_once,
        task="checking",
    )
    verdicts = [judge(item, reply) for item, reply in zip(asked, replies, strict=True)]
    told = [Verdict(item) for item in items if item.restates]
    ordered = sorted(verdicts, key=lambda verdict: verdict.item.passage)
    groups = [list(group) for _, group in groupby(ordered, key=lambda verdict: verdict.item.passage)]
    return [
        verdict for group in groups for verdict in (group if is_chunk(group, text) else agreed(group))
    ] + told


def from_bank(engine: Engine, text: str, *, at_once: int) -> Generator[Event, None, list[Item]]:
    """Usual questions that the model can answer from statements which the rules have no phrase for.

    The first wording of each is tried; where the model finds an answer, all wordings are, and most of them
    must lead to the same one. A sentence says one thing, so only one answer is taken; and none where the
    model finds one to so many questions that it must be making them up.
    """
    known = {statement.text: whom(statement) for statement in statements(text)}
    tries = [
        (Item(view, wordings[0], "", origin="model"), wordings[1:])
        for view in views(text)
        for subject in known.get(view, names_in(view)[:2])
        for wordings in bank(subject)
    ]
    first = yield from confirmed(engine, [item for item, _ in tries], at_once=at_once)
    answered = Counter(found.passage for found in first if found.value)
    hits = [
        (found, more)
        for (_, more), found in zip(tries, first, strict=True)
        if found.value and answered[found.passage] <= CREDULOUS
    ]
    others = [replace(found, question=question, value="") for found, more in hits for question in more]
    second = iter((yield from confirmed(engine, others, at_once=at_once)))
    kept: list[Item] = []
    for found, more in hits:
        agreeing = sum(next(second).answer == found.answer for _ in more)
        if agreeing >= MOST * len(more):
            kept += [replace(found, question=question) for question in (found.question, *more)]
    return [item for passage in by_passage(kept) for item in likeliest(passage)]


def by_passage(items: Sequence[Item]) -> list[list[Item]]:
    """Items grouped by their passage, in order."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.passage, []).append(item)
    return list(groups.values())


def likeliest(items: Sequence[Item]) -> list[Item]:
    """Of items about one sentence those with the answer that says most of it, to the most questions."""
    counts = Counter(item.answer for item in items)
    best = max(items, key=lambda item: (len(item.value.split()), counts[item.answer]))
    return [item for item in items if item.answer == best.answer]


def confirmed(engine: Engine, items: Sequence[Item], *, at_once: int) -> Generator[Event, None, list[Item]]:
    """The items with supported answers; without answer and value where there is none."""
    replies = yield from side_by_side(
        lambda item: open_book(engine, item), items, at_once=at_once, task="asking the usual questions"
    )
    verdicts = [judge(item, reply) for item, reply in zip(items, replies, strict=True)]
    return [
        verdict.item if verdict.is_kept else replace(verdict.item, answer="", value="")
        for verdict in verdicts
    ]


def is_chunk(group: list[Verdict], text: str) -> bool:
    """Whether items are about the whole chunk: different facts, which need not agree."""
    return group[0].item.passage == text and len(views(text)) > 1
