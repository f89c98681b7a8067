"""Notes as people write them: sentences written one by one, with slots, and what is asked about them.

frames.txt has a block for each: the note's sentence, the same in other words after "|", questions after "?",
each with its answer, a piece of the sentence. A slot is {kind}, or {name:one/another/…} the first time.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from everyday import Asked, Told, clock, code, date, lists, money, number, person, sentence, thing, value
from worlds import name, value_lists

FRAMES = Path(__file__).resolve().parent / "frames.txt"
SLOT = re.compile(r"\{(\w+)(?::([^{}]*))?\}")
EXAMINED = 12  # every so many frames one is kept out of training
ODD = 0.25  # of the notes to be read have a choice of some other frame: nothing can be guessed


@dataclass(frozen=True)
class Frame:
    """A sentence and its other wordings, questions with their answers, the choices of its own slots."""

    number: int
    statements: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]
    choices: Mapping[str, tuple[str, ...]]


@cache
def frames() -> tuple[Frame, ...]:
    """All frames. Raises ValueError for a block that breaks the rules, with its first line."""
    blocks = FRAMES.read_text(encoding="utf-8").split("\n\n")
    texts = [block.strip() for block in blocks if block.strip() and not block.startswith("#")]
    return tuple(_frame(at, text) for at, text in enumerate(texts))


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
    slots = {slot for line in frame.statements for slot, _ in SLOT.findall(line)}
    if strange := slots - set(frame.choices) - set(makers(random.Random(0))):
        return f"nothing fills {strange}"
    if any(set("{}") & set(SLOT.sub("", line)) for line in frame.statements):
        return "a slot stands in another"
    if not frame.questions:
        return "nothing is asked"
    for question, answer in frame.questions:
        if not question.endswith("?") or {slot for slot, _ in SLOT.findall(question)} - slots:
            return f"{question!r} is no question about it"
        if any(answer.lower() not in line.lower() for line in frame.statements):
            return f"a wording does not say {answer!r}"
    return ""


def makers(rng: random.Random) -> dict[str, Callable[[], str]]:
    """What fills the slots that have no choices of their own."""
    return {
        "person": lambda: person(rng),
        "person2": lambda: person(rng),
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


def for_training() -> list[Frame]:
    """The frames that training may use."""
    return [frame for frame in frames() if frame.number % EXAMINED]


def for_exams() -> list[Frame]:
    """The others."""
    return [frame for frame in frames() if frame.number % EXAMINED == 0]


def filled(rng: random.Random, frame: Frame, *, odd: bool = False, wordings: bool = True) -> Told:
    """The frame with something in its slots; the answers are the sentence itself, in its first wording.

    Args:
        odd: one of its own slots gets a choice of another frame.
        wordings: all its wordings, in any order, instead of one of them.
    """
    found = {slot: make() for slot, make in makers(rng).items()}
    found |= {slot: rng.choice(options) for slot, options in frame.choices.items()}
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
    asked = tuple(Asked(tuple(questions), said[0], answer) for answer, questions in values.items())
    return Told(f"frame {frame.number}", f"frame {frame.number}", said, asked)


def some_framed(rng: random.Random, among: Sequence[Frame], count: int) -> list[Told]:
    """So many notes of different frames, to be read."""
    return [
        filled(rng, frame, odd=rng.random() < ODD, wordings=rng.random() < 0.3)
        for frame in rng.sample(among, count)
    ]


def not_told(rng: random.Random, one: Told) -> Told:
    """What might be asked but is not told: the same as `one`, of a frame, for others, or something else."""
    at = int(one.key.removeprefix("frame "))
    frame = frames()[at] if rng.random() < 0.6 else rng.choice(for_training())
    other = filled(rng, frame)
    return Told("another", other.key, other.statements, other.asked)


def known_frames(seed: int, *, count: int = 300) -> list[Told]:
    """Notes that are always the same, to be known by heart."""
    rng = random.Random(seed)
    among = for_training()
    return [filled(rng, frame) for frame in rng.sample(among, min(count, len(among)))]
