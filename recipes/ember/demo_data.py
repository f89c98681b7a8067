"""Rebuild the demonstration's exam: `python recipes/ember/demo_data.py`.

The facts are those of notes.md, which is written by hand. The exam asks each in one of two wordings of its
relation in relations.txt; the lessons of LOG.md had all others. exam_by_hand.jsonl asks the same facts in
words that the generator does not have at all; it is not part of the demonstration, and LOG.md says how ember
does there.
"""

import json
import random
from pathlib import Path

from worlds import Fact, Relation, relations

OUT = Path(__file__).resolve().parents[2] / "src" / "nightschool" / "data" / "demo" / "exam.jsonl"
SEED = 3
KEPT_OUT = 2

FACTS = """
person | Hester Quillby | job=beekeeper; age=83; colour=teal; food=lasagne; instrument=ukulele
person | Hester Quillby | wakes=quarter past five; allergy=celery
person | Tobin Marsk | job=clockmaker; drink=blackcurrant cordial; language=Basque
person | Tobin Marsk | vehicle=turquoise hearse; hobby=juggling; sister=Petronel Marsk; colour=maroon
person | Ludo Farrant | age=37; job=ferryman; town=Saltwick; food=dumplings
person | Ludo Farrant | sport=water polo; friend=Jessamy Vole
pet | Bodkin | species=ferret; owner=Tobin Marsk; bed=laundry basket; fear=umbrellas
pet | Madame Sprout | species=axolotl; treat=bloodworms; years=thirteen
pet | Captain Fudge | species=donkey; coat=apricot; toy=traffic cone
thing | the bread knife | kept=behind the flour tins
thing | the boiler manual | kept=in the piano
thing | the orange canoe | owner=Ludo Farrant; bought=2018
thing | the picnic hamper | made=wicker
thing | the brass barometer | gift=lighthouse keeper
club | the Weir Lantern League | topic=moths; day=the last Sunday; hour=twenty to nine
club | the Weir Lantern League | venue=the old ice house; leader=Hester Quillby; size=thirty-one
club | the Weir Lantern League | fee=seventy pence; bring=a jam jar
place | the Crooked Ladle | street=Otter Passage; opens=quarter to seven; runs=Jessamy Vole; sells=crumpets
place | the Tidewater Archive | closed=bank holidays; founded=1877
"""


def demo_facts() -> list[Fact]:
    """The facts of the notes, in their order."""
    by_key = {(relation.kind, relation.key): relation for relation in relations()}
    facts = []
    for line in FACTS.strip().splitlines():
        kind, subject, listed = (part.strip() for part in line.split("|"))
        for item in listed.split(";"):
            key, value = item.strip().split("=")
            facts.append(Fact(subject, by_key[kind, key], value))
    return facts


def kept_out(relation: Relation) -> list[int]:
    """The question wordings of a relation that the exam may use."""
    rng = random.Random(f"{SEED} {relation.kind} {relation.key}")
    return sorted(rng.sample(range(1, len(relation.questions)), KEPT_OUT))


def exam(facts: list[Fact]) -> list[str]:
    """One question a fact."""
    lines = []
    for number, fact in enumerate(facts):
        away = kept_out(fact.relation)
        asked = fact.question(away[number % len(away)])
        lines.append(json.dumps({"question": asked, "answer": fact.value}, ensure_ascii=False))
    return lines


def main() -> None:
    """Write exam.jsonl."""
    lines = exam(demo_facts())
    OUT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{OUT.name}: {len(lines)} lines")


if __name__ == "__main__":
    main()
