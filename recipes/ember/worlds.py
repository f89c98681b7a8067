"""Little worlds: people, pets, places, clubs, things, facts about them, and many wordings for each.

relations.txt holds the wordings, values.txt the values. Everything is drawn from a `random.Random` that the
caller seeds. Two kinds of worlds are made: the fixed population, whose facts ember is to know by heart, and
fresh entities that occur once, to practise reading and repeating names that it has never seen.
"""

import random
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = ("person", "pet", "place", "club", "thing")

ONSETS = (
    "b bl br c ch cl d dr f fl fr g gl gr h j k kl l m n p pl pr qu r s sh sk sl st t th tr v w y z".split()
)
VOWELS = "a e i o u a e i o ai ee ia oo ou".split()
CODAS = "b ck d f g l ll m n n n nd nk r r rn rt s s sk ss st t th x y".split()
ENDINGS = (
    "a e o y ie en in on er el ard ett ilda ina ora us wick ley man son ton ford mund bert old win".split()
)


@dataclass(frozen=True)
class Relation:
    """What can be said and asked about one kind of entity; `canonical` is also the form of an answer."""

    kind: str
    key: str
    values: str
    canonical: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One fact: the subject, the relation, the value."""

    subject: str
    relation: Relation
    value: str

    def statement(self, wording: int) -> str:
        """The fact in one of its wordings; 0 is the canonical one."""
        return fill(self.relation.statements[wording], self.subject, self.value)

    def question(self, wording: int) -> str:
        """A question for the fact."""
        return fill(self.relation.questions[wording], self.subject, "")

    @property
    def answer(self) -> str:
        """The full sentence that answers every question for the fact."""
        return self.statement(0)

    @property
    def short(self) -> str:
        """The value alone, as a sentence."""
        return self.value[0].upper() + self.value[1:] + "."


@dataclass
class Pools:
    """The lists of values.txt, and the people that relations between people draw from."""

    lists: dict[str, tuple[str, ...]]
    persons: list[str] = field(default_factory=list)

    def draw(self, rng: random.Random, relation: Relation) -> str:
        """A value for the relation."""
        return rng.choice(self.persons if relation.values == "persons" else self.lists[relation.values])


@cache
def relations() -> tuple[Relation, ...]:
    """All relations of relations.txt, in its order."""
    found: list[tuple[list[str], dict[str, list[str]]]] = []
    for line in (HERE / "relations.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            found.append((line.strip("[]").split(), {"!": [], "-": [], "?": []}))
        elif line and not line.startswith("#"):
            found[-1][1][line[0]].append(line[2:])
    return tuple(
        Relation(*head, said["!"][0], (said["!"][0], *said["-"]), tuple(said["?"])) for head, said in found
    )


@cache
def value_lists() -> dict[str, tuple[str, ...]]:
    """The lists of values.txt."""
    return read_lists("values.txt")


def read_lists(file: str) -> dict[str, tuple[str, ...]]:
    """The lists of a file: a name, a colon, values with commas between."""
    lines = (HERE / file).read_text(encoding="utf-8").splitlines()
    pairs = (line.split(":", 1) for line in lines if line and not line.startswith("#"))
    return {name: tuple(value.strip() for value in values.split(",")) for name, values in pairs}


def fill(wording: str, subject: str, value: str) -> str:
    """Put subject and value into a wording and begin it with a capital."""
    text = wording.replace("{a}", with_article(value)).replace("{v}", value).replace("{s}", subject)
    text = re.sub(r"s's\b", "s'", text)
    return text[0].upper() + text[1:]


def with_article(value: str) -> str:
    """The value with a or an before it."""
    return f"an {value}" if value[:1].lower() in tuple("aeiou") else f"a {value}"


def name(rng: random.Random) -> str:
    """A common given name now and then, else a made-up one of two or three syllables, as Brinnel."""
    if rng.random() < 0.3:
        return rng.choice(value_lists()["given_names"])
    text = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
    if rng.random() < 0.25:
        text += rng.choice(VOWELS) + rng.choice(CODAS)
    return (text + rng.choice(ENDINGS)).capitalize()


def subject(rng: random.Random, kind: str) -> str:
    """A made-up entity of one kind."""
    lists = value_lists()
    if kind == "person":
        return name(rng) if rng.random() < 0.4 else f"{name(rng)} {name(rng)}"
    if kind == "pet":
        return name(rng)
    if kind == "place":
        return f"the {name(rng)} {rng.choice(lists['place_kinds'])}"
    if kind == "club":
        return f"the {name(rng)} {rng.choice(lists['club_kinds'])}"
    adjective, noun = rng.choice(lists["thing_adjectives"]), rng.choice(lists["thing_nouns"])
    return f"{name(rng)}'s {noun}" if rng.random() < 0.5 else f"the {adjective} {noun}"


def facts_about(rng: random.Random, entity: str, kind: str, *, count: int, pools: Pools) -> list[Fact]:
    """Facts in different relations about one entity."""
    fitting = [relation for relation in relations() if relation.kind == kind]
    chosen = rng.sample(fitting, min(count, len(fitting)))
    return [Fact(entity, relation, pools.draw(rng, relation)) for relation in chosen]


@dataclass(frozen=True)
class Population:
    """The fixed made-up population: its facts by entity."""

    facts: dict[str, list[Fact]]

    def all_facts(self) -> list[Fact]:
        """Every fact, entity by entity."""
        return [fact for facts in self.facts.values() for fact in facts]


def population(seed: int, *, entities: int = 320) -> Population:
    """The fixed population: 45% people, the rest pets, places, clubs and things."""
    rng = random.Random(seed)
    kinds = rng.choices(KINDS, weights=(45, 15, 13, 14, 13), k=entities)
    names: dict[str, str] = {}
    for kind in kinds:
        entity = subject(rng, kind)
        while entity in names:
            entity = subject(rng, kind)
        names[entity] = kind
    pools = Pools(value_lists(), [entity for entity, kind in names.items() if kind == "person"])
    facts = {
        entity: facts_about(rng, entity, kind, count=8 if kind == "person" else 6, pools=pools)
        for entity, kind in names.items()
    }
    return Population(facts)


def withheld(fact: Fact) -> frozenset[int]:
    """The two question wordings in which a quarter of the facts are never asked in training."""
    key = sum(map(ord, fact.subject)) + 31 * sum(map(ord, fact.relation.key))
    if key % 4:
        return frozenset()
    count = len(fact.relation.questions)
    return frozenset({key // 4 % count, (key // 4 + 3) % count})


def fresh_world(rng: random.Random, *, entities: int) -> list[Fact]:
    """Facts about entities that occur nowhere else."""
    pools = Pools(value_lists(), [subject(rng, "person") for _ in range(8)])
    facts: list[Fact] = []
    for _ in range(entities):
        kind = rng.choice(KINDS)
        facts += facts_about(rng, subject(rng, kind), kind, count=rng.randint(1, 4), pools=pools)
    return facts
