"""Everyday notes without end: things and their attributes, doings, places, habits, how one does something.

What relations.txt does for a fixed set of relations, this does with a little grammar, so that ember learns to
read and to ask about sentences of many forms. A `Told` is one thing that notes may say: wordings of the
statement, and what can be asked about it. Facts of relations.txt fit into it as well.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from worlds import Fact, name, value_lists, with_article

HERE = Path(__file__).resolve().parent
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


@dataclass(frozen=True)
class Asked:
    """Questions that have one answer, a whole sentence with the value in it.

    `is_sentence`: it is one of the notes, word for word.
    """

    questions: tuple[str, ...]
    answer: str
    value: str
    is_sentence: bool = False


@dataclass(frozen=True)
class Told:
    """One thing that is told, in several wordings, and what can be asked about it."""

    subject: str
    key: str  # two with the same subject and key would contradict each other
    statements: tuple[str, ...]
    asked: tuple[Asked, ...]


@cache
def lists() -> dict[str, tuple[str, ...]]:
    """The lists of everyday.txt."""
    lines = (HERE / "everyday.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(":", 1) for line in lines if line and not line.startswith("#"))
    return {key: tuple(item.strip() for item in items.split(";")) for key, items in pairs}


def told_fact(fact: Fact) -> Told:
    """A fact of relations.txt."""
    wordings = range(len(fact.relation.statements))
    questions = tuple(fact.question(index) for index in range(len(fact.relation.questions)))
    statements = tuple(fact.statement(index) for index in wordings)
    return Told(fact.subject, fact.relation.key, statements, (Asked(questions, fact.answer, fact.value),))


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = " ".join(text.split())
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")


def asked(questions: list[str], answer: str, value: str) -> Asked:
    """Questions and answer as sentences."""
    return Asked(tuple(map(sentence, questions)), sentence(answer), value)


def told(subject: str, key: str, statements: list[str], questions: list[Asked]) -> Told:
    """Statements as sentences, each wording once."""
    return Told(subject, key, tuple(dict.fromkeys(map(sentence, statements))), tuple(questions))


def possessive(noun: str) -> str:
    """The noun with 's, or with ' after an s."""
    return noun + ("'" if noun.endswith("s") else "'s")


# Who and what -------------------------------------------------------------------------------------


def person(rng: random.Random) -> str:
    """Somebody, named or known to the writer."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(lists()["someone"])
    if kind < 0.4:
        return f"{rng.choice(lists()['title'])} {name(rng)}"
    return name(rng) if kind < 0.75 else f"{name(rng)} {name(rng)}"


def thing(rng: random.Random) -> str:
    """Something that notes are about: the old boiler, Ned's bicycle, our van."""
    noun = rng.choice(lists()["noun"])
    kind = rng.random()
    if kind < 0.3:
        return f"the {noun}"
    if kind < 0.55:
        return f"the {rng.choice(lists()['adjective'])} {noun}"
    if kind < 0.7:
        return f"{rng.choice(('our', 'my'))} {noun}"
    return f"{possessive(name(rng))} {noun}" if kind < 0.85 else f"the {name(rng)} {noun}"


def value(rng: random.Random, kind: str) -> str:
    """A value of one kind, most of them out of very many."""
    makers: dict[str, Callable[[], str]] = {
        "code": lambda: code(rng),
        "money": lambda: money(rng),
        "colour": lambda: rng.choice(lists()["hues"]),
        "measure": lambda: f"{amount(rng)} {rng.choice(lists()['unit'])}",
        "word": lambda: name(rng) if rng.random() < 0.8 else f"{name(rng)} {name(rng)}",
        "number": lambda: number(rng),
        "who": lambda: person(rng),
        "address": lambda: f"{rng.randint(1, 120)} {name(rng)} {rng.choice(('Street', 'Lane', 'Road'))}",
        "years": lambda: f"{rng.randint(2, 99)} years",
        "date": lambda: date(rng),
        "weekday": lambda: rng.choice(value_lists()["days"]),
        "stuff": lambda: rng.choice(lists()["stuff"]),
        "span": lambda: f"{rng.choice(('', 'about '))}{number(rng)} {rng.choice(lists()['period'])}",
        "time": lambda: f"at {clock(rng)}",
        "place": lambda: name(rng),
        "thing": lambda: thing(rng),
        "every": lambda: rng.choice(lists()["every"]),
    }
    return makers[kind]()


def code(rng: random.Random) -> str:
    """A password, a part number: tulip42, K7-219, 4471."""
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 4)))
    return rng.choice(
        (
            f"{rng.choice(lists()['noun']).replace(' ', '')}{digits}",
            f"{rng.choice(LETTERS)}{rng.choice('0123456789')}-{digits}",
            f"{rng.choice(LETTERS)}{rng.choice(LETTERS)}{digits}",
            name(rng).lower() + digits,
            f"{rng.randint(100, 99999)}",
        )
    )


def number(rng: random.Random) -> str:
    """A number, in words or in digits."""
    if rng.random() < 0.5:
        return rng.choice((*value_lists()["numbers"], "thirty", "forty", "fifty", "twenty-five", "sixty"))
    return str(rng.randint(2, 99 if rng.random() < 0.7 else 2500))


def amount(rng: random.Random) -> str:
    """A number, perhaps with a decimal."""
    return f"{rng.randint(0, 40)}.{rng.randint(1, 9)}" if rng.random() < 0.3 else number(rng)


def money(rng: random.Random) -> str:
    """A sum of money."""
    return (
        f"£{rng.randint(1, 90)}.{rng.randint(10, 99)}"
        if rng.random() < 0.2
        else f"{number(rng)} {rng.choice(lists()['money'])}"
    )


def date(rng: random.Random) -> str:
    """A day: 3 March, or 12 May 2021."""
    day = f"{rng.randint(1, 28)} {rng.choice(value_lists()['months'])}"
    return f"{day} {rng.randint(1900, 2030)}" if rng.random() < 0.3 else day


def clock(rng: random.Random) -> str:
    """A time of day."""
    kind = rng.random()
    if kind < 0.4:
        return f"{rng.randint(1, 23)}:{rng.choice(('00', '15', '30', '45', '10', '50'))}"
    return (
        rng.choice(value_lists()["times"])
        if kind < 0.7
        else f"{rng.randint(1, 12)} {rng.choice(('am', 'pm'))}"
    )


# What is told -------------------------------------------------------------------------------------


def attribute(rng: random.Random, subject: str) -> Told:
    """The price of the old boat is nine pounds."""
    noun, kind = rng.choice(lists()["attribute"]).split("|")
    found = value(rng, kind)
    owned = possessive(subject)
    statements = [
        f"the {noun} of {subject} is {found}",
        f"{owned} {noun} is {found}",
        f"{found} is the {noun} of {subject}",
        f"for {subject}, the {noun} is {found}",
        f"{subject} has the {noun} {found}",
        f"{owned} {noun}: {found}",
    ]
    questions = [
        f"what is the {noun} of {subject}?",
        f"what is {owned} {noun}?",
        f"what {noun} does {subject} have?",
        f"which {noun} does {subject} have?",
        f"do you know the {noun} of {subject}?",
        f"can you tell me {owned} {noun}?",
    ]
    if subject.startswith("the "):
        statements += [f"{subject} {noun} is {found}"]
        questions += [f"what is {subject} {noun}?"]
    if kind == "who":
        questions += [f"who is the {noun} of {subject}?", f"who is {owned} {noun}?"]
    answer = f"the {noun} of {subject} is {found}"
    return told(subject, noun, statements, [asked(questions, answer, found)])


def measured(rng: random.Random, subject: str) -> Told:
    """The ferry leaves at 7:15."""
    verb, base, question, kind = rng.choice(lists()["takes"]).split("|")
    found = value(rng, kind)
    question = question.replace("{s}", subject)
    statements = [f"{subject} {verb} {found}", f"I was told that {subject} {verb} {found}"]
    if kind == "time":
        statements.append(f"{found} {subject} {verb}")
    questions = [question]
    if kind in ("time", "date", "every") and question.startswith("When does"):
        questions = [
            question,
            question.replace("When does", "At what time does" if kind == "time" else "On which day does"),
        ]
    if question.startswith("Who does"):
        questions.append(f"whose is {subject}?")
    return told(subject, base, statements, [asked(questions, f"{subject} {verb} {found}", found)])


def doing(rng: random.Random, subject: str) -> Told:
    """Aunt Vera planted roses behind the shed in April."""
    past, base, objects = rng.choice(lists()["did"]).split("|")
    what = rng.choice(objects.split(",")).strip()
    where = rng.choice(lists()["where"]) if rng.random() < 0.6 else ""
    when = rng.choice(lists()["when"]) if rng.random() < 0.6 or not where else ""
    core = f"{subject} {past} {what}"
    statements = [
        f"{core} {where} {when}",
        f"{core} {when} {where}",
        f"it was {subject} who {past} {what} {where} {when}",
    ]
    if when:
        statements.append(f"{when}, {core} {where}")
    questions = [
        asked(
            [f"who {past} {what}?", f"who was it that {past} {what}?", f"which person {past} {what}?"],
            core,
            subject,
        ),
        asked([f"what did {subject} {base}?", f"what was it that {subject} {past}?"], core, what),
    ]
    if where:
        wheres = [f"where did {subject} {base} {what}?", f"in which place did {subject} {base} {what}?"]
        questions.append(asked(wheres, f"{core} {where}", where))
    if when:
        whens = [f"when did {subject} {base} {what}?", f"when was it that {subject} {past} {what}?"]
        questions.append(asked(whens, f"{core} {when}", when))
    return told(subject, base, statements, questions)


def habit(rng: random.Random, subject: str) -> Told:
    """Ned waters the plants every Monday."""
    verb, base, objects = rng.choice(lists()["does"]).split("|")
    what = rng.choice(objects.split(",")).strip()
    when = rng.choice(lists()["every"])
    core = f"{subject} {verb} {what}"
    statements = [f"{core} {when}", f"{when}, {core}", f"{when} it is {subject} who {verb} {what}"]
    questions = [
        asked([f"who {verb} {what}?", f"who is it that {verb} {what}?"], core, subject),
        asked([f"what does {subject} {base}?", f"what does {subject} {base} {when}?"], core, what),
        asked(
            [f"when does {subject} {base} {what}?", f"how often does {subject} {base} {what}?"],
            f"{core} {when}",
            when,
        ),
    ]
    return told(subject, base, statements, questions)


def place(rng: random.Random, subject: str) -> Told:
    """The spare key hangs behind the clock."""
    where = rng.choice(lists()["where"])
    verbs = (
        "is",
        "lies",
        "is kept",
        "is stored",
        "can be found",
        "has its place",
        "hangs",
        "stands",
        "sits",
        "lives",
    )
    statements = [f"{subject} {verb} {where}" for verb in verbs]
    statements += [
        f"we keep {subject} {where}",
        f"{where} you will find {subject}",
        f"I put {subject} {where}",
    ]
    questions = [
        f"where is {subject}?",
        f"where do I find {subject}?",
        f"where do we keep {subject}?",
        f"where can {subject} be found?",
        f"where should I look for {subject}?",
        f"where is {subject} kept?",
    ]
    return told(subject, "where", statements, [asked(questions, f"{subject} is {where}", where)])


def role(rng: random.Random, subject: str) -> Told:
    """Our plumber is Hester Vole."""
    part, whose = rng.choice(lists()["role"]), rng.choice(("our", "the", "my"))
    statements = [
        f"{whose} {part} is {subject}",
        f"{subject} is {whose} {part}",
        f"{whose} {part} is called {subject}",
        f"the name of {whose} {part} is {subject}",
        f"we have {with_article(part)}, {subject}",
    ]
    questions = [
        f"who is {whose} {part}?",
        f"what is the name of {whose} {part}?",
        f"what is {whose} {part} called?",
        f"how is {whose} {part} called?",
    ]
    answer = f"{whose} {part} is {subject}"
    return told(f"{whose} {part}", "role", statements, [asked(questions, answer, subject)])


def count(rng: random.Random, subject: str) -> Told:
    """There are nine chairs in the loft."""
    things, where, many = rng.choice(lists()["things"]), rng.choice(lists()["where"]), number(rng)
    statements = [
        f"there are {many} {things} {where}",
        f"{where} there are {many} {things}",
        f"we have {many} {things} {where}",
    ]
    questions = [
        f"how many {things} are there {where}?",
        f"how many {things} are {where}?",
        f"how many {things} do we have {where}?",
    ]
    return told(things, where, statements, [asked(questions, f"there are {many} {things} {where}", many)])


def how_to(rng: random.Random, subject: str) -> Told:
    """To reset the boiler, press the red button for nine seconds."""
    verb, act = rng.choice(lists()["do"]), rng.choice(lists()["act"])
    act = (
        act.replace("{colour}", rng.choice(lists()["hues"]))
        .replace("{span}", f"for {value(rng, 'span')}")
        .replace("{adjective}", rng.choice(lists()["adjective"]))
        .replace("{number}", number(rng))
        .replace("{stuff}", rng.choice(lists()["stuff"]))
        .replace("{code}", code(rng))
        .replace("{who}", person(rng))
    )
    statements = [
        f"to {verb} {subject}, {act}",
        f"if you want to {verb} {subject}, {act}",
        f"{act} to {verb} {subject}",
    ]
    questions = [
        f"how do I {verb} {subject}?",
        f"what must I do to {verb} {subject}?",
        f"how can I {verb} {subject}?",
        f"how does one {verb} {subject}?",
    ]
    return told(subject, verb, statements, [asked(questions, f"to {verb} {subject}, {act}", act)])


ABOUT_PEOPLE = ((doing, 5), (habit, 3), (role, 2), (attribute, 1))
ABOUT_THINGS = ((attribute, 5), (measured, 4), (place, 4), (how_to, 2), (count, 1))


def everyday(rng: random.Random, *, entities: int, facts: int) -> list[Told]:
    """`facts` things told about `entities` people and things; none contradicts another."""
    people = [rng.random() < 0.5 for _ in range(entities)]
    subjects = [person(rng) if is_person else thing(rng) for is_person in people]
    found: dict[tuple[str, str], Told] = {}
    for number_ in range(facts * 4):
        if len(found) == facts:
            break
        at = number_ % entities
        makers = ABOUT_PEOPLE if people[at] else ABOUT_THINGS
        maker = rng.choices([make for make, _ in makers], [share for _, share in makers])[0]
        one = maker(rng, subjects[at])
        found.setdefault((one.subject, one.key), one)
    return list(found.values())


def openings(rng: random.Random, statement: str) -> str:
    """The statement after "By the way," or the like."""
    opening = rng.choice(lists()["opening"])
    lower = statement.split(" ", 1)[0] in (
        "The",
        "Our",
        "My",
        "To",
        "There",
        "It",
        "We",
        "In",
        "On",
        "At",
        "For",
    )
    return f"{opening} {statement[0].lower() + statement[1:] if lower else statement}"
