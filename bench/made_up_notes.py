"""Notes about people, animals, places, clubs and things that nobody knows, with questions about every fact.

Made by the generator of recipes/ember, with seeds that no recipe uses; for the benchmarks of studying.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "recipes" / "ember")]

import worlds  # noqa: E402


@dataclass(frozen=True)
class Asked:
    """A question about a fact, in one random wording; `page` is the label of its source."""

    question: str
    answer: str
    page: str


def write_pages(folder: Path, *, seed: int, pages: int, entities: int = 6, facts: int = 6) -> list[Asked]:
    """Markdown pages of so many entities with so many facts each, every fact in a random wording.

    No two pages speak of the same entity. Returns a question for each fact.
    """
    rng = random.Random(seed)
    pools = worlds.Pools(worlds.value_lists(), [worlds.subject(rng, "person") for _ in range(40)])
    folder.mkdir(parents=True)
    names: set[str] = set()
    asked: list[Asked] = []
    for number in range(1, pages + 1):
        label = f"{folder.name}/page{number:02}.md"
        sections = [f"# Page {number}\n"]
        while len(sections) <= entities:
            kind = rng.choice(worlds.KINDS)
            name = worlds.subject(rng, kind)
            if name in names:
                continue
            names.add(name)
            about = worlds.facts_about(rng, name, kind, count=facts, pools=pools)
            told = " ".join(fact.statement(rng.randrange(len(fact.relation.statements))) for fact in about)
            sections.append(f"## {name[0].upper()}{name[1:]}\n\n{told}\n")
            asked += [
                Asked(fact.question(rng.randrange(len(fact.relation.questions))), fact.value, label)
                for fact in about
            ]
        (folder / f"page{number:02}.md").write_text("\n".join(sections), encoding="utf-8")
    return asked
