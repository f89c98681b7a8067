"""The whole examination of an ember, as a table: `python recipes/ember/examine.py [--model FILE]`.

Everything is asked through the package: answers come from llama.cpp (greedy), lessons are learned by `train`
and `study`. Entities, values and notes are in no training document: names are drawn anew, values are those of
values_exam.txt, and the notes of newcomer/ were written sentence by sentence, by no generator. --data FOLDER
has the texts of texts.py, for the figures on plain English. --card FILE keeps the table in that card.
"""

import argparse
import json
import math
import os
import random
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import exams
from documents import TELL
from everyday import Told, told_fact
from exams import SLOTS, answers, right
from reading import REPHRASE, some_told, world
from texts import general_texts
from worlds import fill, population

from nightschool.adapters import Stack
from nightschool.answer import NOT_KNOWN
from nightschool.check import READ, Item, contains, is_question, judge
from nightschool.engine import Engine
from nightschool.evaluate import Question as Asked
from nightschool.evaluate import general_lessons, perplexity, sit_exam
from nightschool.events import result_of
from nightschool.gguf import open_gguf
from nightschool.library import remember
from nightschool.model import Model
from nightschool.paths import package_data
from nightschool.runs import Order, carry_out, find_run
from nightschool.settings import StudySettings, TrainSettings
from nightschool.store import open_store
from nightschool.study import StudyOrder, study
from nightschool.writer import WRITE_QUESTION

HERE = Path(__file__).resolve().parent
EMBER = package_data("ember") / "ember.gguf"
QUESTIONS, SENTENCES = 300, 200
TAUGHT = {"entities": 12, "facts": 48}
LESSONS = TrainSettings(rank=16, lr=3e-3, epochs=3, batch_tokens=1024, rehearsal=0.4)
SETS = ("allotment", "flat", "band")

Value = TypeVar("Value")
Row = tuple[str, float, str]  # what, how much, what is wanted


def main() -> None:
    """Examine, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBER)
    parser.add_argument("--data", type=Path, help="folder with text/ as texts.py expects it")
    parser.add_argument("--card", type=Path, help="card.json to keep the table in")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as home:
        os.environ["NIGHTSCHOOL_HOME"] = home
        model = str(options.model.resolve())
        for part in (asked_only, written, taught, newcomer):
            rows += show(part(model))
        if options.data:
            rows += show(english(model, options.data))
    if options.card:
        card = json.loads(options.card.read_text(encoding="utf-8"))
        card["examined"] = {what: round(share, 4) for what, share, _ in rows}
        options.card.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def show(rows: Sequence[Row]) -> Sequence[Row]:
    """Print rows as they come."""
    for what, share, wanted in rows:
        figure = (
            f"{share:.1%}" if share <= 1 and "bits" not in what else f"{share:,.3f}".rstrip("0").rstrip(".")
        )
        print(f"| {what} | {figure} | {wanted} |", flush=True)
    return rows


def chats(engine: Engine, questions: Sequence[str]) -> list[str]:
    """Greedy replies to single messages."""
    return answers(engine, [f"<|user|>{question}<|assistant|>" for question in questions])


def share(found: Sequence[bool]) -> float:
    """How many of them are true."""
    return sum(found) / max(1, len(found))


def asked_only(model: str) -> list[Row]:
    """What needs no training: notes, what they do not say, the population; and how fast."""
    people = population(1)
    sets = {
        "there": exams.notes_questions(seed=11, count=QUESTIONS),
        "absent": exams.notes_questions(seed=12, count=QUESTIONS, absent=True),
        "framed": exams.framed_questions(seed=14, count=QUESTIONS),
        "paged": exams.page_questions(seed=15, count=QUESTIONS),
        "known": exams.known_questions(people, seed=13, count=QUESTIONS, held_out=False),
        "reworded": exams.known_questions(people, seed=13, count=QUESTIONS, held_out=True),
    }
    with Engine(Path(model), slots=SLOTS, ctx=512) as engine:
        said = {key: answers(engine, [q.prompt for q in asked]) for key, asked in sets.items()}
        speed = tokens_per_s(engine)
    refused = share([bool(NOT_KNOWN.match(reply)) for reply in said["there"]])
    return [
        ("answers from notes in the prompt", right(sets["there"], said["there"]), "85%"),
        ("… in natural English, sentences kept out of training", right(sets["framed"], said["framed"]), "–"),
        ("… whole pages of it, kept out of training", right(sets["paged"], said["paged"]), "–"),
        ("says that it does not know when they do not say", right(sets["absent"], said["absent"]), "80%"),
        ("… and refuses though they do say", refused, "at most 10%"),
        ("its population, closed-book", right(sets["known"], said["known"]), "80%"),
        ("… in wordings never used for those facts", right(sets["reworded"], said["reworded"]), "–"),
        ("tokens a second, one at a time", speed, "300"),
    ]


def tokens_per_s(engine: Engine) -> float:
    """Decoding speed in llama.cpp on all cores, by its own clock."""
    found = engine.complete("Once upon a time", max_tokens=256, temperature=0.0, ignore_eos=True)
    return round(float(found["timings"]["predicted_per_second"]))


def written(model: str) -> list[Row]:
    """Questions, question/answer pairs and rephrasings for single sentences, by the rule-based check."""
    rng = random.Random("sentences")
    told = [some_told(rng, entities=1, facts=1, values=exams.exam_values())[0] for _ in range(SENTENCES)]
    given = [rng.choice(one.statements) for one in told]
    with Engine(Path(model), slots=SLOTS, ctx=512) as engine:
        questions = chats(engine, [WRITE_QUESTION.format(passage=text) for text in given])
        replies = chats(
            engine,
            [READ.format(passage=text, question=q) for text, q in zip(given, questions, strict=True)],
        )
        others = chats(engine, [REPHRASE.format(passage=text) for text in given])
    pairs = [
        is_good_pair(one, text, question, reply)
        for one, text, question, reply in zip(told, given, questions, replies, strict=True)
    ]
    reworded = [is_rephrased(one, text, other) for one, text, other in zip(told, given, others, strict=True)]
    return [
        ("writes a question and answers it: right and on topic", share(pairs), "70%"),
        ("says a sentence in other words: nothing lost, nothing added", share(reworded), "70%"),
    ]


def is_good_pair(one: Told, text: str, question: str, reply: str) -> bool:
    """Whether the check keeps the pair, and the answer is what the fact says for such a question."""
    if is_question(question, text) or not judge(Item(text, question, "", origin="model"), reply).is_kept:
        return False
    values = [each.value for each in one.asked]
    return any(contains(reply, value) and not contains(question, value) for value in values)


def is_rephrased(one: Told, text: str, other: str) -> bool:
    """Whether the text is another one, with the fact's subject and value and no name or number of its own."""
    if other == text or not all(contains(other, each.value) for each in one.asked[:1]):
        return False
    if one.subject.split()[-1].lower().removesuffix("s") not in other.lower():
        return False
    names = set(re.findall(r"\b[A-Z]\w+", other.partition(" ")[2])) - {"The"}
    return judge(Item(text, "Say it.", "", value=one.asked[0].value), other).is_kept and all(
        name in text for name in names
    )


def taught(model: str) -> list[Row]:
    """New facts by LoRA: from statements alone, and with questions in other wordings."""
    rng = random.Random("taught")
    told = [told_fact(fact) for fact in world(rng, values=exams.exam_values(), **TAUGHT)]
    statements = [
        (fill(wording, one.subject, ""), text)
        for one in told
        for text in one.statements
        for wording in rng.sample(TELL, 3)
    ]
    asked: list[Asked] = []
    lessons: list[tuple[str, str]] = []
    for one in told:
        found = one.asked[0]
        kept = rng.sample(range(len(found.questions)), 2)
        asked += [Asked(found.questions[index], found.value) for index in kept]
        lessons += [(q, found.answer) for at, q in enumerate(found.questions) if at not in kept] * 3
    from_notes, forgot = learned(model, statements, asked, rng)
    from_questions, forgot_more = learned(model, lessons, asked, rng)
    return [
        ("new facts by LoRA from statements alone", from_notes, "60%"),
        ("… and perplexity on general text rises by", forgot, "–"),
        ("new facts by LoRA, questions in other wordings among the lessons", from_questions, "90%"),
        ("… and perplexity then rises by", forgot_more, "–"),
    ]


def learned(
    model: str, lessons: Sequence[tuple[str, str]], asked: Sequence[Asked], rng: random.Random
) -> tuple[float, float]:
    """(recall after, forgetting) of an adapter trained on question/answer lessons."""
    lines = [
        json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]})
        for q, a in rng.sample(lessons, len(lessons))
    ]
    path = Path(os.environ["NIGHTSCHOOL_HOME"]) / "lessons.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    order = Order(base=model, data=(path,), name="taught", settings=LESSONS, rehearsal=HERE / "rehearsal.txt")
    result_of(carry_out(order, find_run(order, restart=True, replace_old=True)))
    result = result_of(
        sit_exam(Stack(model, (("taught", 1.0),)), asked, general=package_data("demo/general.txt"))
    )
    return result.recall, result.forgetting or 0.0


def newcomer(model: str) -> list[Row]:
    """Notes of another hand: answered from the prompt, and after a study of them."""
    from_prompt: list[bool] = []
    after: list[bool] = []
    for name in SETS:
        lines = (HERE / "newcomer" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        asked = [Asked(item["question"], item["answer"]) for item in map(json.loads, lines)]
        notes = HERE / "newcomer" / f"{name}.md"
        text = notes.read_text(encoding="utf-8").strip()
        with Engine(Path(model), slots=SLOTS, ctx=512) as engine:
            said = chats(engine, [READ.format(passage=text, question=q.question) for q in asked])
        from_prompt += [contains(reply, q.answer) for q, reply in zip(asked, said, strict=True)]
        after += studied(model, notes, name, asked)
    return [
        ("a newcomer's notes (3 sets, 30 questions), in the prompt", share(from_prompt), "60%"),
        ("… after a study of each set, closed-book", share(after), "60%"),
    ]


def studied(model: str, notes: Path, name: str, asked: Sequence[Asked]) -> list[bool]:
    """Which questions are answered right, closed-book, after studying one page in a home of its own."""
    os.environ["NIGHTSCHOOL_HOME"] = str(Path(os.environ["NIGHTSCHOOL_HOME"]) / name)
    db = open_store()
    result_of(remember(db, [notes]))
    # Nothing is set aside: what is asked afterwards was written by somebody else.
    settings = StudySettings(
        minutes=20, exam=0, dev=0, min_gain=-1.0, max_forgetting=9.0, max_fabrication=9.0
    )
    result_of(study(db, StudyOrder(base=model, name=name, settings=settings)))
    db.close()
    result = result_of(sit_exam(Stack(model, ((name, 1.0),)), asked))
    return [contains(answer.reply, answer.question.answer) for answer in result.answers]


def english(model: str, folder: Path) -> list[Row]:
    """Bits a byte on stories and books that training never saw."""
    _, _, held = general_texts(folder)
    rows = []
    for what, texts in (("TinyStories", held[0::2]), ("books", held[1::2])):
        path = Path(os.environ["NIGHTSCHOOL_HOME"]) / "held.txt"
        path.write_text("\n\n".join(texts), encoding="utf-8")
        with Engine(Path(model)) as engine:
            lessons = result_of(general_lessons(path, engine))
        nats = math.log(perplexity(Model(open_gguf(Path(model)), "fp32"), {}, lessons))
        bits = nats * sum(int(lesson.targets.sum()) for lesson in lessons) / math.log(2)
        rows.append((f"bits a byte, held-out {what}", bits / path.stat().st_size, "–"))
    return rows


if __name__ == "__main__":
    main()
