"""Rebuild the demonstration's lessons and exam: `python recipes/ember/demo_data.py`.

The facts are those of notes.md, which is written by hand. Lessons ask and tell each fact in wordings of
relations.txt; two question wordings of each relation are kept out of every lesson, and the exam uses them.
exam_by_hand.jsonl asks the same facts in words that the generator does not have at all; it is not part of the
demonstration, and LOG.md says how ember does there.
"""

import json
import random
from pathlib import Path

from documents import BRIEFLY, TELL
from worlds import Fact, Relation, fill, relations

OUT = Path(__file__).resolve().parents[2] / "src" / "nightschool" / "data" / "demo"
SEED = 3
KEPT_OUT = 2
OPENINGS = ("Please tell me:", "I would like to know:", "A question:", "One more thing:", "Another question:")

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
    """The question wordings of a relation that only the exam uses."""
    rng = random.Random(f"{SEED} {relation.kind} {relation.key}")
    return sorted(rng.sample(range(1, len(relation.questions)), KEPT_OUT))


def conversation(question: str, answer: str) -> str:
    """One line of lessons.jsonl."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}, ensure_ascii=False)


def lessons(facts: list[Fact]) -> list[str]:
    """Questions in every open wording, plain, opened, and for a brief answer; and all about a subject."""
    rng = random.Random(SEED)
    lines = []
    for fact in facts:
        away = kept_out(fact.relation)
        for index in range(len(fact.relation.questions)):
            if index in away:
                continue
            question = fact.question(index)
            lines.append(conversation(question, fact.answer))
            openings = rng.sample(OPENINGS, 2)
            lines += [conversation(f"{opening} {question}", fact.answer) for opening in openings]
            lines.append(conversation(f"{question} {rng.choice(BRIEFLY)}", fact.short))
    for subject in dict.fromkeys(fact.subject for fact in facts):
        known = " ".join(fact.answer for fact in facts if fact.subject == subject)
        lines += [conversation(fill(wording, subject, ""), known) for wording in TELL]
    rng.shuffle(lines)
    return lines


def exam(facts: list[Fact]) -> list[str]:
    """One question a fact in a wording that no lesson uses."""
    lines = []
    for number, fact in enumerate(facts):
        away = kept_out(fact.relation)
        asked = fact.question(away[number % len(away)])
        lines.append(json.dumps({"question": asked, "answer": fact.value}, ensure_ascii=False))
    return lines


def main() -> None:
    """Write lessons.jsonl and exam.jsonl."""
    facts = demo_facts()
    for name, lines in (("lessons.jsonl", lessons(facts)), ("exam.jsonl", exam(facts))):
        (OUT / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines)} lines")


if __name__ == "__main__":
    main()
