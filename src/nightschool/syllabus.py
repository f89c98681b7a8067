"""Which items become lessons and which the exam: the same question is never in both.

Items about one sentence with one answer are a fact. A fact that is asked for in several wordings gives one
of them to the exam, some facts another one to the development part, the rest become lessons, all with the
same answer: the one that the model gave most often with the sentence in view, for its own words are the
easiest to learn. Facts with few wordings are asked for more politely until they have as many lessons as the
others.

Sources that were studied one after the other are divided one after the other, each time as before: what was
a lesson once is never asked in an exam later.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Container, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from nightschool.check import Item, contains, gist, key, without_duplicates
from nightschool.events import Progress, result_of
from nightschool.settings import StudySettings

TASK, FACTS_AN_EVENT = "dividing the lessons", 256
WORDINGS_TO_SPARE = 3  # a fact must be asked for in so many before one is set aside
FRAMES = (
    "{q}",
    "Please tell me: {q}",
    "One question: {q}",
    "{q} Please answer.",
    "I would like to know: {q}",
    "Quick question. {q}",
)


@dataclass(frozen=True)
class Fact:
    """Lessons about one thing that a note says; `answer` is what its questions teach, `told` its sentence."""

    answer: str
    items: tuple[Item, ...]
    told: tuple[Item, ...]


@dataclass(frozen=True)
class Taught:
    """One lesson: what is asked, what is to be answered, and the text that it is from."""

    question: str
    answer: str
    passage: str

    @property
    def line(self) -> str:
        """The lesson as a line of a chat data set."""
        return line_of(self.question, self.answer)


@dataclass(frozen=True)
class Syllabus:
    """What is taught, what is asked, what was dropped and why; `earlier` facts were taught before."""

    facts: list[Fact]
    exam: list[Item]
    dev: list[Item]
    dropped: dict[str, int]
    earlier: list[Fact] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Items that are of use: lessons, told sentences, set-aside questions."""
        taught = sum(len(fact.items) + len(fact.told) for fact in (*self.facts, *self.earlier))
        return taught + len(self.exam) + len(self.dev)


def divide_in_turn(
    generations: Sequence[Sequence[Item]], settings: StudySettings, *, reserved: Container[str] = ()
) -> Generator[Progress, None, Syllabus]:
    """Divide the items of sources that were studied one after the other; the last ones are new.

    Each generation is divided as when it was new. What contradicts or gives away another one is left out.
    """
    total, parts = sum(map(len, generations)), []
    for at, items in enumerate(generations):
        before = sum(map(len, generations[:at]))
        parts.append((yield from dividing(items, settings, reserved=reserved, before=before, total=total)))
    if len(parts) == 1:
        return parts[0]
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.dropped)
    useful = sum(part.count for part in parts)
    facts = [consistent(part, [other for other in parts if other is not part]) for part in parts]
    taught = [gists_of(each) for each in facts]
    held = [
        [
            item
            for item in (*part.exam, *part.dev)
            if not any(gist(item.question) in others for others in taught[:at] + taught[at + 1 :])
        ]
        for at, part in enumerate(parts)
    ]
    exam = [item for part, kept in zip(parts, held, strict=True) for item in part.exam if item in kept]
    dev = [item for part, kept in zip(parts, held, strict=True) for item in part.dev if item in kept]
    made = Syllabus(facts[-1], exam, dev, dict(dropped), [fact for part in facts[:-1] for fact in part])
    if useful > made.count:
        made.dropped["at odds with a source studied before"] = useful - made.count
    return made


def consistent(part: Syllabus, others: Sequence[Syllabus]) -> list[Fact]:
    """A generation's facts without lessons that others set aside, or answer in another way."""
    held = {gist(item.question) for other in others for item in (*other.exam, *other.dev)}
    known = {
        key(item.question): key(item.answer)
        for other in others
        for fact in other.facts
        for item in fact.items
    }
    found = []
    for fact in part.facts:
        items = tuple(
            item
            for item in fact.items
            if gist(item.question) not in held
            and known.get(key(item.question), key(item.answer)) == key(item.answer)
        )
        if items or fact.told:
            found.append(replace(fact, items=items))
    return found


def gists_of(facts: Sequence[Fact]) -> set[str]:
    """What makes a question nearly one of these facts' lessons."""
    return {gist(item.question) for fact in facts for item in fact.items}


def divide(items: Sequence[Item], settings: StudySettings, *, reserved: Container[str] = ()) -> Syllabus:
    """As `dividing`, for few items."""
    return result_of(dividing(items, settings, reserved=reserved))


def dividing(
    items: Sequence[Item],
    settings: StudySettings,
    *,
    reserved: Container[str] = (),
    before: int = 0,
    total: int | None = None,
) -> Generator[Progress, None, Syllabus]:
    """Group items into facts and set questions aside; the same for the same items and settings.

    Args:
        reserved: gists of questions that nobody may be taught: those of an exam that somebody else wrote.
        before: so many items of `total` were divided already; said with the progress.
    """
    total = len(items) if total is None else total
    yield Progress(TASK, before, total)
    verdicts = without_duplicates(items)
    dropped = Counter(verdict.reason for verdict in verdicts if not verdict.is_kept)
    asked = [verdict.item for verdict in verdicts if verdict.is_kept and not verdict.item.restates]
    free = [item for item in asked if gist(item.question) not in reserved]
    if len(free) < len(asked):
        dropped["a question of your own exam"] = len(asked) - len(free)
    asked = free
    groups: list[list[Item]] = []
    for group in by_fact(asked):
        groups.append(group_of(group, settings))
        before += len(group)
        if len(groups) % FACTS_AN_EVENT == 0:
            yield Progress(TASK, before, total)
    gists = Counter(each for group in groups for each in {gist(item.question) for item in group})
    shared = {each for each, count in gists.items() if count > 1}
    order = sorted(range(len(groups)), key=lambda index: draw(groups[index][0], settings))
    exam: list[Item] = []
    dev: list[Item] = []
    for away, most, indices in ((exam, settings.exam, order), (dev, settings.dev, order[::-1])):
        for index in indices:
            if len(away) < most and different(groups[index]) >= WORDINGS_TO_SPARE:
                groups[index] = set_aside(groups[index], away, shared)
    near = len(asked) - sum(map(len, groups)) - len(exam) - len(dev)
    if near:
        dropped["nearly a question of the exam"] = near
    told: dict[str, list[Item]] = {}
    for verdict in verdicts:
        if verdict.is_kept and verdict.item.restates:
            told.setdefault(verdict.item.passage, []).append(verdict.item)
    facts = [
        Fact(group[0].answer, tuple(group), tuple(told.pop(group[0].passage, ())))
        for group in groups
        if group
    ]
    facts += [Fact(rest[0].answer, (), tuple(rest)) for rest in told.values()]  # nobody found a question
    return Syllabus(facts, exam, dev, dict(dropped))


def by_fact(items: Sequence[Item]) -> list[list[Item]]:
    """Items about one sentence whose values are the same, or one of them part of the other."""
    groups: dict[str, list[tuple[str, list[Item]]]] = {}
    for item in sorted(items, key=lambda item: len(item.value)):  # stable: short values lead
        known = groups.setdefault(item.passage, [])
        value = f" {key(item.value)} "
        fitting = next((group for short, group in known if short in value), None)
        if fitting is None:
            known.append((value, [item]))
        else:
            fitting.append(item)
    return [group for known in groups.values() for _, group in known]


def group_of(items: Sequence[Item], settings: StudySettings) -> list[Item]:
    """The items of a fact with its answer, in an order that only questions and seed decide."""
    answer = common_answer(items)
    value = min((item.value for item in items), key=len)
    same = (replace(item, answer=answer_of(item, answer), value=value) for item in items)
    return sorted(same, key=lambda item: draw(item, settings))


def different(group: Sequence[Item]) -> int:
    """In how many wordings a fact is asked for, not counting those that are nearly the same."""
    return len({gist(item.question) for item in group})


def set_aside(group: list[Item], away: list[Item], shared: Container[str]) -> list[Item]:
    """Put a question of a fact away; the lessons that are left, none of them nearly the same.

    One that is nearly a question for another fact is not put away.
    """
    chosen = next((item for item in reversed(group) if gist(item.question) not in shared), None)
    if chosen is None:
        return group
    away.append(chosen)
    return [item for item in group if gist(item.question) != gist(chosen.question)]


def draw(item: Item, settings: StudySettings) -> float:
    """A number from 0 to 1 that only the question and the seed decide."""
    return mark(item.question, settings)


def mark(question: str, settings: StudySettings) -> float:
    digest = hashlib.sha256(f"{settings.seed} {key(question)}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def common_answer(group: Sequence[Item]) -> str:
    """The answer most items have; the passage itself only where there is no other."""
    own = [item.answer for item in group if item.answer != item.passage]
    return Counter(own or [item.answer for item in group]).most_common(1)[0][0]


def answer_of(item: Item, common: str) -> str:
    """The common answer, where it gives this item's value."""
    return common if contains(common, item.value) else item.answer


def lessons(facts: Sequence[Fact], settings: StudySettings) -> list[Taught]:
    """The lessons of facts, in their order."""
    return [each for fact in facts for each in lessons_of(fact, settings)]


def lessons_of(fact: Fact, settings: StudySettings) -> Iterator[Taught]:
    """All lessons of a fact: questions, plain and politely framed, and the sentence in its own words."""
    made = [Taught(item.question, item.answer, item.passage) for item in fact.items]
    for frame in FRAMES[1:]:
        for item in fact.items:
            if len(made) + len(fact.told) >= settings.repeats:
                break
            made.append(Taught(frame.format(q=item.question), item.answer, item.passage))
    yield from made
    for item in fact.told:
        yield Taught(item.question, item.answer, item.passage)


def some_lessons(facts: Sequence[Fact], settings: StudySettings, *, characters: float) -> list[Taught]:
    """About so many characters of lessons, of as many facts as possible: one of each, then a second …"""
    every = [list(lessons_of(fact, settings)) for fact in facts]
    order = sorted(range(len(facts)), key=lambda at: mark(every[at][0].question, settings))
    chosen: list[Taught] = []
    for round in range(max(map(len, every), default=0)):
        for at in order:
            if characters <= 0:
                return chosen
            if round < len(every[at]):
                chosen.append(every[at][round])
                characters -= len(chosen[-1].line)
    return chosen


def lesson_lines(syllabus: Syllabus, settings: StudySettings) -> list[str]:
    """All lessons as lines of a chat data set, in the facts' order."""
    return [each.line for each in lessons([*syllabus.facts, *syllabus.earlier], settings)]


def question_line(item: Item) -> str:
    """A question and its answer."""
    return line_of(item.question, item.answer)


def line_of(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}, ensure_ascii=False)
