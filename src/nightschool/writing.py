"""The write stage for one chunk: every writer writes, the model answers with it in view, the check judges."""

from collections.abc import Generator
from itertools import groupby

from nightschool.check import Verdict, agreed, judge
from nightschool.engine import Engine
from nightschool.events import Event
from nightschool.settings import StudySettings
from nightschool.writer import (
    Talker,
    by_rules,
    open_book,
    plain_items,
    side_by_side,
    structured_items,
    views,
)

# Models with fewer weights than this write no JSON worth checking.
STRUCTURED_BYTES = 150 << 20


def write_chunk(
    engine: Engine, text: str, settings: StudySettings, *, teacher: Talker | None = None
) -> Generator[Event, None, list[Verdict]]:
    """All items about a chunk with their verdicts (the generator's value); same text, same items."""
    at_once = settings.slots
    items = by_rules(text)
    written = yield from side_by_side(
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
    by_passage = [list(group) for _, group in groupby(ordered, key=lambda verdict: verdict.item.passage)]
    return [
        verdict for group in by_passage for verdict in (group if is_chunk(group, text) else agreed(group))
    ] + told


def is_chunk(group: list[Verdict], text: str) -> bool:
    """Whether items are about the whole chunk: different facts, which need not agree."""
    return group[0].item.passage == text
