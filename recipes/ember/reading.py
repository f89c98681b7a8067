"""Training documents about notes in the prompt: answers, "I do not know.", questions to write, other words.

The prompts are the package's own (`ask` and `study`), so that ember reads as it will be asked to.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby

from documents import ASSISTANT, BRIEFLY, END, NOTE, READING, SYSTEM, USER, Document, turn
from everyday import ABOUT_PEOPLE, ABOUT_THINGS, Asked, Told, everyday, lists, number, openings, told_fact
from frames import Page, not_told, some_of_page
from worlds import Fact, Pools, name, relations, subject, value_lists

from nightschool.answer import INSTRUCTIONS, UNKNOWN
from nightschool.check import READ
from nightschool.writer import WRITE_QUESTION, by_rules

REPHRASE = "Say it in other words: {passage}"
WRITE_PAIR = "Write a question and its answer: {passage}"
VALUE = 2.0  # weight of what is to be found in the notes
STRANGE_VALUES = 0.6  # of the facts of relations.txt that are to be read: values that do not fit them
BEGUN = 3.0  # weight of how the sentence begins that answers


Lists = Mapping[str, tuple[str, ...]]


def some_told(rng: random.Random, *, entities: int, facts: int, values: Lists | None = None) -> list[Told]:
    """Facts about fresh entities: of relations.txt, everyday ones, or some of both."""
    kind = rng.random()
    formal = facts if kind < 0.35 else 0 if kind < 0.75 else facts // 2
    made = world(rng, entities=entities, facts=formal, values=values) if formal else []
    found = [told_fact(fact) for fact in made]
    rest = facts - len(found)
    if rest > 0:
        found += everyday(rng, entities=max(1, min(entities, rest)), facts=rest)
    return found


def world(rng: random.Random, *, entities: int, facts: int, values: Lists | None = None) -> list[Fact]:
    """So many facts of relations.txt about so many entities, fewer where the kinds have no more."""
    pools = Pools(dict(values or value_lists()), [subject(rng, "person") for _ in range(8)])
    kinds = [rng.choice(("person", "person", "pet", "place", "club", "thing")) for _ in range(entities)]
    subjects = [subject(rng, kind) for kind in kinds]
    found: list[Fact] = []
    for at, (kind, who) in enumerate(zip(kinds, subjects, strict=True)):
        share = facts // entities + (at < facts % entities)
        fitting = [relation for relation in relations() if relation.kind == kind]
        chosen = rng.sample(fitting, min(share, len(fitting)))
        for relation in chosen:
            strange = values is None and rng.random() < STRANGE_VALUES
            found.append(Fact(who, relation, open_value(rng) if strange else pools.draw(rng, relation)))
    return found


def open_value(rng: random.Random) -> str:
    """Any word or two, so that a value can only be had by reading it: Ada's birthday is in oilcloth."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(words())
    if kind < 0.6:
        return f"{rng.choice(words())} {rng.choice(words())}"
    made_up = name(rng)
    return number(rng) if kind < 0.7 else made_up.lower() if kind < 0.9 else made_up


@cache
def words() -> tuple[str, ...]:
    """Single words of all lists of values."""
    said = [value for values in (*value_lists().values(), *lists().values()) for value in values]
    return tuple(sorted({word for value in said for word in re.findall(r"[A-Za-z]{4,}", value)}))


def notes_of(rng: random.Random, said: list[Told]) -> str:
    """Notes that say all of it: one after the other or by subject, as prose or as a list, with a heading."""
    order = list(said)
    if rng.random() < 0.5:
        rng.shuffle(order)
    texts: list[str] = []
    before = ""
    for one in order:
        text = rng.choice(one.statements)
        again = before == one.subject
        if again and text.startswith(f"{before} ") and rng.random() < 0.3:
            texts[-1] = f"{texts[-1][:-1]} and {text.removeprefix(before).strip()}"
            continue
        if again and one.subject[0].isupper() and rng.random() < 0.25:
            text = with_pronoun(text, one.subject)
        elif rng.random() < 0.08:
            text = openings(rng, text)
        texts.append(text)
        before = one.subject
    kind = rng.random()
    body = " ".join(texts) if kind < 0.7 else "\n".join(f"- {text}" for text in texts)
    if 0.6 < kind < 0.85:
        body = f"# {rng.choice(lists()['title_words'])}\n\n{body}"
    return body


PLAIN = re.compile(
    r"(?:The [a-z]+|[A-Z][a-z]+(?: and [A-Z][a-z]+)?) [a-z][a-z, ]*(?: [A-Z][a-z]+)?[a-z, ]*\."
)
NO_SUBJECT = frozenset(
    "Once Then And But So One It She He They I You We There This That Now Suddenly Finally Eventually When "
    "After Every Each Soon Taking Some All What In On At To As His Her Their My Your From Inside Just "
    "Even".split()
)


def from_stories(stories: list[str]) -> list[Told]:
    """Plain sentences of stories, with the questions that the package's rules make of them."""
    found = []
    for story in stories:
        items = [item for item in by_rules(story) if not item.restates]
        for passage, group in groupby(items, key=lambda item: item.passage):
            first = passage.split()[0]
            if not PLAIN.fullmatch(passage) or first in NO_SUBJECT or not 4 <= len(passage.split()) <= 14:
                continue
            questions = tuple(
                Asked((item.question,), item.answer, item.value)
                for item in group
                if 1 <= len(item.value.split()) <= 6 and first in item.question + item.value
            )
            if questions:
                found.append(Told(first, passage, (passage,), questions))
    return found


def renamed(rng: random.Random, one: Told) -> Told:
    """The same of somebody else, where it is about somebody with a name."""
    if one.subject == "The" or rng.random() < 0.3:
        return one
    other = name(rng)

    def changed(text: str) -> str:
        return re.sub(rf"\b{one.subject}\b", other, text)

    questions = tuple(
        Asked(tuple(map(changed, each.questions)), changed(each.answer), changed(each.value))
        for each in one.asked
    )
    return Told(other, one.key, tuple(map(changed, one.statements)), questions)


def with_pronoun(text: str, who: str) -> str:
    """The statement about somebody named just before, with She or He for the name."""
    she = sum(map(ord, who)) % 2 == 0
    text = re.sub(rf"^{re.escape(who)}'s?\b", "Her" if she else "His", text)
    return re.sub(rf"^{re.escape(who)}\b", "She" if she else "He", text)


def question_for(rng: random.Random, said: list[Told], *, absent: float) -> tuple[str, Asked | None]:
    """A question about the notes; None beside it where they do not say."""
    if rng.random() >= absent:
        found = rng.choice(rng.choice(said).asked)
        return rng.choice(found.questions), found
    keys = {(one.subject, one.key) for one in said}
    answered = {question for one in said for each in one.asked for question in each.questions}
    for _ in range(20):
        other = rng.choice(absent_from(rng, said))
        question = rng.choice(rng.choice(other.asked).questions)
        if (other.subject, other.key) not in keys and question not in answered:
            return question, None
    return rng.choice(everyday(rng, entities=1, facts=1)[0].asked).questions[0], None


def absent_from(rng: random.Random, said: list[Told]) -> list[Told]:
    """What might be asked but is not told: another entity, or something else about one of these."""
    kind = rng.random()
    one = rng.choice(said)
    if one.key.startswith("frame "):
        return [not_told(rng, one)]
    renamed = strange(rng, one)
    if kind < 0.45 and renamed:
        return [renamed]
    same = [relation for relation in relations() if relation.key == one.key]
    if kind < 0.85 and same:
        others = [relation for relation in relations() if relation.kind == same[0].kind]
        told_keys = {each.key for each in said if each.subject == one.subject}
        left = [relation for relation in others if relation.key not in told_keys]
        if left:
            return [told_fact(Fact(one.subject, rng.choice(left), "?"))]
    if kind < 0.85:
        makers = ABOUT_PEOPLE if one.subject[0].isupper() else ABOUT_THINGS
        return [rng.choice(makers)[0](rng, one.subject)]
    return everyday(rng, entities=1, facts=1)


def strange(rng: random.Random, one: Told) -> Told | None:
    """The same asked about a name that the notes do not have."""
    names = re.findall(r"\b[A-Z][a-z]+\b", one.subject)
    if not names:
        return None
    other = name(rng)
    questions = tuple(
        Asked(tuple(q.replace(names[-1], other) for q in each.questions), "", "")
        for each in one.asked
        if all(names[-1] in q for q in each.questions)
    )
    return Told(one.subject.replace(names[-1], other), one.key, (), questions) if questions else None


def reply(rng: random.Random, question: str, found: Asked | None) -> tuple[str, Document]:
    """The question, perhaps for a brief answer, and what is right to say."""
    if found is None:
        return question, [(UNKNOWN, 1.0)]
    if rng.random() < 0.1:
        cue = rng.choice(BRIEFLY)
        return f"{question} {cue}", [(found.value[0].upper() + found.value[1:] + ".", VALUE)]
    return question, in_pieces(found, VALUE)


def in_pieces(found: Asked, weight: float) -> Document:
    """The answer, with a weight of its own for the value; the space before a word belongs to it.

    Where the answer is a sentence of the notes, its first two words decide which, and weigh more as well.
    """
    at = found.answer.lower().find(found.value.lower())
    if at < 0:
        return [(found.answer, 1.0)]
    before = found.answer[:at].rstrip(" ")
    end = at + len(found.value)
    begun = re.match(r"\S+ \S+(?= )", before)[0] if found.is_sentence and before.count(" ") > 1 else ""
    pieces = (
        (begun, BEGUN),
        (before[len(begun) :], 1.0),
        (found.answer[len(before) : end], weight),
        (found.answer[end:], 1.0),
    )
    return [(text, share) for text, share in pieces if text]


def notes_chat(rng: random.Random, told: Sequence[Told] = (), *, absent: float, most: int = 6) -> Document:
    """2–8 facts about 1–4 entities in the prompt, then questions, some about what the notes do not say.

    Args:
        told: sentences of another kind, some of which, at most `most`, are to be among the notes.
    """
    said = some_told(rng, entities=rng.randint(1, 4), facts=rng.randint(2, 8))
    if told:
        chosen = rng.sample(told, rng.randint(1, min(most, len(told))))
        said = [renamed(rng, one) for one in chosen] + said[: rng.randint(0, 3)]
    count = rng.randint(2, 5) if len(said) <= 8 else rng.randint(1, 3)
    asked = [reply(rng, *question_for(rng, said, absent=absent)) for _ in range(count)]
    return with_notes(rng, notes_of(rng, said), asked)


def with_notes(rng: random.Random, notes: str, asked: list[tuple[str, Document]]) -> Document:
    """A chat of questions with their replies that has the notes in its prompt, in one of four forms."""
    kind = rng.random()
    (question, answer), *others = asked
    if kind < 0.35:
        head = turn(READ.format(passage=notes, question=question), answer)
    elif kind < 0.6:
        head = turn(f"{rng.choice(NOTE)} {notes} {question}".strip(), answer)
    elif kind < 0.8:
        head = [(f"{SYSTEM}{rng.choice(NOTE)} {notes}".rstrip(), READING), *turn(question, answer)]
    else:
        thanks: Document = [("Thank you. I have read it.", 1.0)]
        head = turn(f"{rng.choice(NOTE)} {notes}".strip(), thanks, asked=READING) + turn(question, answer)
    return head + [piece for question, answer in others for piece in turn(question, answer)]


def page_chat(rng: random.Random, page: Page, *, absent: float) -> Document:
    """Some sentences of a page in the prompt, then questions; some ask for others of the page."""
    said, left_out = some_of_page(rng, page, rng.randint(2, len(page.frames)))
    asked = [reply(rng, question, found) for question, found in some_questions(rng, said, rng.randint(4, 10))]
    for at in range(len(asked)):
        if left_out and rng.random() < absent:
            asked[at] = reply(rng, some_questions(rng, left_out, 1)[0][0], None)
    return with_notes(rng, laid_out(rng, page.heading, [one.statements[0] for one in said]), asked)


def some_questions(rng: random.Random, told: Sequence[Told], count: int) -> list[tuple[str, Asked]]:
    """So many different questions about what is told, or all there are."""
    every = [(question, asked) for one in told for asked in one.asked for question in asked.questions]
    return rng.sample(every, min(count, len(every)))


def laid_out(rng: random.Random, heading: str, sentences: Sequence[str]) -> str:
    """A page as people lay it out: a heading or none, lines, a paragraph or two, a list, some of each."""
    kind = rng.random() * (1.0 if len(sentences) > 3 else 0.75)
    if kind < 0.35:
        body = "\n".join(sentences)
    elif kind < 0.6:
        body = " ".join(sentences)
    elif kind < 0.75:
        body = "\n".join(f"- {text}" for text in sentences)
    else:
        first, last = sorted(rng.sample(range(1, len(sentences)), 2))
        middle = "\n".join(f"- {text}" for text in sentences[first:last])
        gap = rng.choice(("\n", " "))
        body = f"{gap.join(sentences[:first])}\n\n{middle}\n\n{gap.join(sentences[last:])}"
    return f"# {heading}\n\n{body}" if rng.random() < 0.7 else body


def ask_chat(rng: random.Random, told: Sequence[Told] = (), *, absent: float, most: int = 8) -> Document:
    """The same in the form of `nightschool ask`: instructions, numbered notes, a question."""
    said = list(told[: rng.randint(2, 6)]) or some_told(
        rng, entities=rng.randint(1, 4), facts=rng.randint(2, most)
    )
    cut = rng.randint(1, len(said))
    groups = [group for group in (said[:cut], said[cut:]) if group]
    blocks = []
    for place, group in enumerate(groups, 1):
        where = f"[{place}] {rng.choice(lists()['noun']).replace(' ', '-')}.md"
        if rng.random() < 0.6:
            where += f" › {rng.choice(lists()['title_words'])}"
        blocks.append(f"{where}\n<note>\n{notes_of(rng, group)}\n</note>")
    question, found = question_for(rng, said, absent=absent)
    answer: Document = [(found.answer if found else UNKNOWN, 1.0)]
    asked = "\n".join(blocks) + f"\n\nQuestion: {question}"
    return [(f"{SYSTEM}{INSTRUCTIONS}{USER}{asked}{ASSISTANT}", 0.0), *answer, (END, 1.0)]


def roll(rng: random.Random) -> Document:
    """The same told of several entities, a question for each in another order, one for a stranger."""
    while True:
        one = some_told(rng, entities=1, facts=1)[0]
        if re.search(r"\b[A-Z][a-z]+", one.subject[1:]) or one.subject[:1].isupper():
            break
    relation = next((r for r in relations() if r.key == one.key), None)
    if relation is None:
        return notes_chat(rng, absent=0.3)
    pools = Pools(value_lists(), [subject(rng, "person") for _ in range(8)])
    said = [
        told_fact(
            Fact(
                subject(rng, relation.kind),
                relation,
                open_value(rng) if rng.random() < STRANGE_VALUES else pools.draw(rng, relation),
            )
        )
        for _ in range(rng.randint(2, 6))
    ]
    asked = [
        (rng.choice(each.asked[0].questions), each.asked[0].answer) for each in rng.sample(said, len(said))
    ]
    if rng.random() < 0.4:
        stranger = told_fact(Fact(subject(rng, relation.kind), relation, "?"))
        asked.insert(rng.randrange(len(asked)), (rng.choice(stranger.asked[0].questions), UNKNOWN))
    asked[0] = f"{notes_of(rng, said)} {asked[0][0]}", asked[0][1]
    return [piece for question, answer in asked for piece in turn(question, [(answer, 1.0)])]


def writing_chat(rng: random.Random, told: Sequence[Told] = ()) -> Document:
    """Write a question for a sentence; a question with its answer; the sentence in other words."""
    one = some_told(rng, entities=1, facts=1)[0]
    if told and rng.random() < 0.6:
        one = renamed(rng, rng.choice(told))
    given = rng.choice(one.statements)
    found = rng.choice(one.asked)
    question = rng.choice(found.questions)
    kind = rng.random()
    if kind < 0.4:
        return turn(WRITE_QUESTION.format(passage=given), [(question, 1.0)])
    if kind < 0.7:
        return turn(WRITE_PAIR.format(passage=given), [(f"{question} {found.answer}", 1.0)])
    others = [text for text in one.statements if text != given]
    if not others:
        return turn(WRITE_QUESTION.format(passage=given), [(question, 1.0)])
    return turn(REPHRASE.format(passage=given), [(rng.choice(others), 1.0)])


def rewording_chat(rng: random.Random, told: Sequence[Told] = ()) -> Document:
    """Several sentences, each said in other words; of everyday facts or of some that are `told`."""
    facts = rng.randint(2, 5)
    some = list(told) if told else some_told(rng, entities=facts, facts=facts)
    pieces: Document = []
    for one in some[:facts]:
        if len(one.statements) > 1:
            given, other = rng.sample(one.statements, 2)
            words = Asked((), other, one.asked[0].value)
            pieces += turn(REPHRASE.format(passage=given), in_pieces(words, VALUE))
    return pieces or writing_chat(rng)


def everyday_name_chat(rng: random.Random) -> Document:
    """Everyday questions about what nobody told: the form is learned, the value has no weight."""
    pieces: Document = []
    for one in everyday(rng, entities=1, facts=rng.randint(1, 2)):
        found = rng.choice(one.asked)
        pieces += turn(rng.choice(found.questions), in_pieces(found, 0.0))
    return pieces


def household(seed: int, *, facts: int = 200) -> list[Told]:
    """Everyday facts that are always the same, to be known by heart."""
    rng = random.Random(seed)
    known: dict[str, Told] = {}
    while len(known) < facts:
        for one in everyday(rng, entities=1, facts=rng.randint(1, 3)):
            if all(each.questions[0] not in known for each in one.asked):
                known |= {each.questions[0]: one for each in one.asked}
    return list(dict.fromkeys(known.values()))


def household_document(rng: random.Random, known: list[Told]) -> Document:
    """Something of the household: told in text, or asked for."""
    picked = rng.sample(known, rng.choice((1, 2, 3)))
    if rng.random() < 0.4:
        return [(" ".join(rng.choice(one.statements) for one in picked), 1.0), (END, 1.0)]
    pieces: Document = []
    for one in picked:
        found = rng.choice(one.asked)
        pieces += turn(rng.choice(found.questions), [(found.answer, 1.0)])
    return pieces
