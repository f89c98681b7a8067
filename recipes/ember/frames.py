"""Notes as people write them: sentences written one by one, with slots, and what is asked about them.

frames.txt has a block for each: the note's sentence, the same in other words after "|", questions after "?",
each with its answer, a piece of the sentence. A slot is {kind}, or {name:one/another/…} the first time.
pages.txt has whole pages of them: a heading and ten or so sentences about one matter.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from everyday import Asked, Told, clock, code, date, lists, money, number, person, sentence, thing, value
from worlds import name, value_lists

FRAMES = Path(__file__).resolve().parent / "frames.txt"
PAGES = FRAMES.with_name("pages.txt")
SLOT = re.compile(r"\{(\w+)(?::([^{}]*))?\}")
EXAMINED = 12  # every so many frames, and pages, one is kept out of training
ODD = 0.25  # of the notes to be read have a choice of some other frame: nothing can be guessed


@dataclass(frozen=True)
class Frame:
    """A sentence and its other wordings, questions with their answers, the choices of its own slots."""

    number: int
    statements: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]
    choices: Mapping[str, tuple[str, ...]]

    @cached_property
    def slots(self) -> frozenset[str]:
        """What is to be filled in its wordings."""
        return frozenset(slot for line in self.statements for slot, _ in SLOT.findall(line))


@dataclass(frozen=True)
class Page:
    """Sentences about one matter, under a heading."""

    heading: str
    frames: tuple[Frame, ...]


@cache
def frames() -> tuple[Frame, ...]:
    """All that stand alone. Raises ValueError for a block that breaks the rules, with its first line."""
    return tuple(_frame(at, text) for at, text in enumerate(_blocks(FRAMES)))


@cache
def pages() -> tuple[Page, ...]:
    """All pages; their frames are numbered on from the others. Raises ValueError as `frames` does."""
    found: list[tuple[str, list[Frame]]] = []
    for at, text in enumerate(_blocks(PAGES), len(frames())):
        if text.startswith("## "):
            found.append((text.removeprefix("## "), []))
        else:
            found[-1][1].append(_frame(at, text))
    return tuple(Page(heading, tuple(page)) for heading, page in found)


def _blocks(path: Path) -> list[str]:
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    return [block.strip() for block in blocks if block.strip() and not block.startswith("# ")]


def _frame(at: int, text: str) -> Frame:
    choices = {slot: tuple(options.split("/")) for slot, options in SLOT.findall(text) if options}
    statements: list[str] = []
    questions: list[tuple[str, str]] = []
    for line in SLOT.sub(r"{\1}", text).splitlines():
        if line.startswith("? "):
            question, _, answer = line[2:].rpartition(" = ")
            slot = f"{{{answer.strip()}}}"
            questions.append((question.strip(), slot if slot in statements[0] else answer.strip()))
        else:
            statements.append(line.removeprefix("| ").strip())
    frame = Frame(at, tuple(statements), tuple(questions), choices)
    if wrong := _wrong(frame):
        raise ValueError(f"{text.splitlines()[0]!r}: {wrong}")
    return frame


def _wrong(frame: Frame) -> str:
    """What breaks the rules; empty if nothing does."""
    if strange := frame.slots - set(frame.choices) - set(makers(random.Random(0))):
        return f"nothing fills {strange}"
    if any(set("{}") & set(SLOT.sub("", line)) for line in frame.statements):
        return "a slot stands in another"
    if not frame.questions:
        return "nothing is asked"
    for question, answer in frame.questions:
        if not question.endswith("?") or {slot for slot, _ in SLOT.findall(question)} - frame.slots:
            return f"{question!r} is no question about it"
        if any(answer.lower() not in line.lower() for line in frame.statements):
            return f"a wording does not say {answer!r}"
    return ""


CAST = ("person", "person2", "person3", "town")  # the same all over a page


def makers(rng: random.Random) -> dict[str, Callable[[], str]]:
    """What fills the slots that have no choices of their own."""
    return {
        "person": lambda: person(rng),
        "person2": lambda: person(rng),
        "person3": lambda: person(rng),
        "town": lambda: name(rng),
        "street": lambda: f"{name(rng)} {rng.choice(('Street', 'Lane', 'Road', 'Hill', 'Row'))}",
        "brand": lambda: name(rng) if rng.random() < 0.6 else f"{name(rng)} {rng.randint(2, 900)}",
        "number": lambda: number(rng),
        "number2": lambda: number(rng),
        "money": lambda: money(rng),
        "date": lambda: date(rng),
        "month": lambda: rng.choice(value_lists()["months"]),
        "weekday": lambda: rng.choice(value_lists()["days"]),
        "year": lambda: str(rng.randint(1780, 2031)),
        "clock": lambda: clock(rng),
        "span": lambda: f"{number(rng)} {rng.choice(lists()['period'])}",
        "measure": lambda: value(rng, "measure"),
        "colour": lambda: rng.choice(lists()["hues"]),
        "code": lambda: code(rng),
        "percent": lambda: f"{rng.randint(2, 95)} {rng.choice(('percent', 'per cent'))}",
        "thing": lambda: thing(rng),
        "where": lambda: rng.choice(lists()["where"]),
        "when": lambda: rng.choice(lists()["when"]),
    }


@cache
def for_training() -> tuple[Frame, ...]:
    """The frames that training may use."""
    return tuple(frame for frame in frames() if frame.number % EXAMINED)


def for_exams() -> tuple[Frame, ...]:
    """The others."""
    return frames()[::EXAMINED]


def pages_for_training() -> tuple[Page, ...]:
    """The pages that training may use."""
    return tuple(page for at, page in enumerate(pages()) if at % EXAMINED)


def pages_for_exams() -> tuple[Page, ...]:
    """The others."""
    return pages()[::EXAMINED]


@cache
def trained() -> dict[int, Frame]:
    """All frames that training may use, those of pages among them, by number."""
    of_pages = (frame for page in pages_for_training() for frame in page.frames)
    return {frame.number: frame for frame in (*for_training(), *of_pages)}


def filled(
    rng: random.Random,
    frame: Frame,
    *,
    odd: bool = False,
    wordings: bool = True,
    cast: Mapping[str, str] | None = None,
) -> Told:
    """The frame with something in its slots; the answers are the sentence itself, in its first wording.

    Args:
        odd: one of its own slots gets a choice of another frame.
        wordings: all its wordings, in any order, instead of one of them.
        cast: what some slots are filled with.
    """
    found = dict(cast or {})
    found |= {slot: rng.choice(options) for slot, options in frame.choices.items()}
    found |= {slot: make() for slot, make in makers(rng).items() if slot in frame.slots - set(found)}
    long = [slot for slot, options in frame.choices.items() if max(map(len, options)) > 4]  # his/her stay
    if odd and long:
        other = rng.choice(for_training())
        strangers = [options for options in other.choices.values() if max(map(len, options)) > 4]
        if strangers:
            found[rng.choice(long)] = rng.choice(rng.choice(strangers))

    def fill(text: str) -> str:
        return SLOT.sub(lambda slot: found[slot[1]], text)

    statements = [sentence(fill(each)) for each in frame.statements]
    rng.shuffle(statements)
    said = tuple(statements if wordings else statements[:1])
    values: dict[str, list[str]] = {}
    for question, answer in frame.questions:
        values.setdefault(fill(answer), []).append(sentence(fill(question)))
    asked = tuple(Asked(tuple(questions), said[0], answer, True) for answer, questions in values.items())
    return Told(f"frame {frame.number}", f"frame {frame.number}", said, asked)


def some_framed(rng: random.Random, among: Sequence[Frame], count: int) -> list[Told]:
    """So many notes of different frames, to be read."""
    return [
        filled(rng, frame, odd=rng.random() < ODD, wordings=rng.random() < 0.1)
        for frame in rng.sample(among, count)
    ]


def some_of_page(
    rng: random.Random, page: Page, count: int, *, odd: float = ODD, wordings: bool = False
) -> tuple[list[Told], list[Told]]:
    """(what is told, what is not) of a page with so many of its sentences, in their order.

    `odd`: the share of the sentences, and `wordings`, as in `filled`.
    """
    made = makers(rng)
    cast = {slot: made[slot]() for slot in CAST}
    told = [filled(rng, frame, odd=rng.random() < odd, wordings=wordings, cast=cast) for frame in page.frames]
    kept = set(rng.sample(range(len(told)), min(count, len(told))))
    said = [one for at, one in enumerate(told) if at in kept]
    return said, [one for at, one in enumerate(told) if at not in kept]


def not_told(rng: random.Random, one: Told) -> Told:
    """What might be asked but is not told: the same as `one`, of a frame, for others, or something else."""
    at = int(one.key.removeprefix("frame "))
    frame = trained()[at] if rng.random() < 0.6 else rng.choice(list(trained().values()))
    other = filled(rng, frame)
    return Told("another", other.key, other.statements, other.asked)


@cache
def by_heart(seed: int, *, count: int = 150, whole: int = 40) -> tuple[tuple[Told, tuple[str, str]], ...]:
    """Notes that are always the same, to be known by heart: single ones and whole pages.

    With each a question that training does not ask, and its answer; both empty where all are needed.
    """
    rng = random.Random(seed)
    among, some = for_training(), pages_for_training()
    told = [filled(rng, frame) for frame in rng.sample(among, min(count, len(among)))]
    for page in rng.sample(some, min(whole, len(some))):
        told += some_of_page(rng, page, len(page.frames), odd=0.0, wordings=True)[0]
    return tuple(_with_one_kept_back(one) for one in told)


def _with_one_kept_back(one: Told) -> tuple[Told, tuple[str, str]]:
    most = max(one.asked, key=lambda asked: len(asked.questions))
    if len(most.questions) < 3:
        return one, ("", "")
    fewer = replace(most, questions=most.questions[:-1])
    asked = tuple(fewer if each is most else each for each in one.asked)
    return replace(one, asked=asked), (most.questions[-1], most.value)
