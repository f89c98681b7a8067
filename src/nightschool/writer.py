"""Writing study items: by rules, by the base itself, or by a teacher; answering them with the passage in
view.

Four writers, and the check decides what is kept of each:

- rules (statements, wordings): every plain English sentence gives questions whose answer is known;
- by words: some words of a sentence ask for it, whatever it says: for tiny models;
- plain: the model is asked for one question about one sentence, several times: what even a tiny model can do;
- structured: the model reads the whole chunk and writes many items at once, as JSON that a grammar enforces:
  what a model of a billion parameters and more can do.

Everything goes through the engine, as many requests side by side as it has slots.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol, Unpack

from nightschool.check import EMPTY, LIGHT, READ, Item, is_question, parts
from nightschool.engine import Sampling
from nightschool.errors import ContextFull
from nightschool.statements import Statement, base_form, sentences, statements
from nightschool.wordings import TELL, bank, fill, questions

QUESTION_TOKENS, ANSWER_TOKENS, ITEMS_TOKENS = 32, 64, 900
ITEMS_AT_ONCE = 8
ABOUT = tuple(
    f"{opening} {{words}}?"
    for opening in (
        "Who", "What", "Where", "When", "Which", "Why", "How", "How many", "How much", "How long", "Whose",
        "What day", "What kind of", "Who has", "Where is the", "What is the", "When does the", "What about",
    )
)  # fmt: skip
SAYING_NOTHING = sorted(word for word in LIGHT if len(word) > 1)
PLAINLY = 8  # times that a sentence is asked for by its words alone
AS_TOLD = 0.5  # of the words stand as they do in the sentence, the others in their base form
WRITE_QUESTION = "Write a question for this: {passage}"
WRITE_ITEMS = (
    "Here is a passage.\n\n{passage}\n\nWrite {count} study questions about the facts in this passage, for "
    "somebody who will have to answer them from memory, without the passage. Every question must name whom "
    "or what it is about. Cover every fact, and also ask for what follows from them. Ask each in two more "
    "wordings, answer it in one full sentence, and give the key words of the answer as they stand in the "
    "passage."
)
ITEMS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "items": {
            "type": "array",
            "minItems": 1,
            "maxItems": ITEMS_AT_ONCE,
            "items": {
                "type": "object",
                "properties": {
                    "question": {"type": "string", "minLength": 8, "maxLength": 200},
                    "other_wordings": {
                        "type": "array",
                        "minItems": 2,
                        "maxItems": 2,
                        "items": {"type": "string", "minLength": 8, "maxLength": 200},
                    },
                    "answer": {"type": "string", "minLength": 4, "maxLength": 300},
                    "key_words": {"type": "string", "minLength": 1, "maxLength": 80},
                },
                "required": ["question", "other_wordings", "answer", "key_words"],
            },
        }
    },
    "required": ["items"],
}


class Talker(Protocol):
    """What can answer: an Engine, or a teacher elsewhere."""

    def chat(self, messages: Sequence[Mapping[str, Any]], **sampling: Unpack[Sampling]) -> str:
        """The answer to a conversation."""


def by_rules(text: str) -> list[Item]:
    """All items that the rules make of a text, restatements included."""
    items: list[Item] = []
    for number, statement in enumerate(statements(text)):
        items += of_statement(statement, TELL[number % len(TELL)])
    return items


def of_statement(statement: Statement, tell: str) -> Iterator[Item]:
    """Questions and one restatement of a statement."""
    told = statement.text
    for asked in questions(statement):
        for question in asked.questions:
            yield Item(told, question, told, asked.value)
    yield Item(told, fill(tell, statement.subject), told, restates=True)


def by_words(text: str, *, count: int, seed: int) -> list[Item]:
    """Each sentence asked for, up to `count` times, by one to three words, first those that others lack.

    From the ninth time on words that say nothing, and some of other questions, stand among them. The answer
    is the sentence itself, whatever is asked. For bases so small that the wording of a question leads them
    astray: they learn which sentence such words belong to, and what to pay no heed to.
    """
    rng = random.Random(seed)
    every = {view: telling(view) for view in views(text)}
    common = Counter(word for words in every.values() for word in words)
    strange = [word for word in asked_words() if base_form(word) not in common]
    items: list[Item] = []
    for view, words in every.items():
        for number in range(count if words else 0):
            likely = sorted(words, key=lambda word: common[word] * rng.random())
            picked = likely[: 1 + number % 3]
            if common[picked[0]] > 1:  # it alone would not say which sentence is meant
                picked = likely[:3]
            said = [
                words[word] if words[word][0].isupper() or rng.random() < AS_TOLD else word
                for word in words
                if word in picked
            ]
            if number >= PLAINLY:
                said = with_others(rng, said, strange)
            items.append(Item(view, rng.choice(ABOUT).format(words=" ".join(said)), view, restates=True))
    return list(dict.fromkeys(items))


def with_others(rng: random.Random, said: Sequence[str], strange: Sequence[str]) -> list[str]:
    """The words with up to three between them that say nothing, and up to two of the strange ones."""
    mixed = list(said)
    others = rng.choices(SAYING_NOTHING, k=rng.randint(0, 3))
    for word in others + rng.choices(strange, k=rng.randint(0, 2)):
        mixed.insert(rng.randint(0, len(mixed)), word)
    return mixed


@cache
def asked_words() -> list[str]:
    """The words of the usual questions that carry meaning."""
    said = (word.lower() for wordings in bank("") for wording in wordings for word in parts(wording))
    return sorted(set(said) - EMPTY)


def telling(sentence: str) -> dict[str, str]:
    """The words of a sentence that carry meaning, by their base form, in order."""
    words = parts(sentence)
    if words and (len(words) < 2 or not words[1][0].isupper()):  # not a name of two words
        words[0] = words[0].lower()
    return {base_form(word.lower()): word for word in words if word.lower() not in EMPTY}


def views(text: str) -> list[str]:
    """The sentences of a text as the plain writer sees them: statements where the rules find any."""
    found: list[str] = []
    understood: set[str] = set()
    for statement in statements(text):
        found.append(statement.text)
        understood.add(statement.source)
    rest = [each for each in sentences(re.sub(r"(?m)^#.*$", "", text)) if each not in understood]
    return list(dict.fromkeys([*found, *(each for each in rest if 4 <= len(each.split()) <= 40)]))


def plain_items(talker: Talker, view: str, *, count: int, seed: int) -> list[Item]:
    """Questions the model writes about one sentence, each different one once; without answers yet."""
    asked: list[str] = []
    for index in range(count):
        text = say(
            talker,
            WRITE_QUESTION.format(passage=view),
            max_tokens=QUESTION_TOKENS,
            temperature=0.7 if index else 0.0,
            seed=seed + index,
        )
        asked.append(text.strip())
    return [
        Item(view, text, "", origin="model") for text in dict.fromkeys(asked) if not is_question(text, view)
    ]


def structured_items(talker: Talker, text: str, *, seed: int, origin: str = "model") -> list[Item]:
    """Items the model writes about a chunk as JSON; none where the model cannot."""
    try:
        reply = say(
            talker,
            WRITE_ITEMS.format(passage=text, count=ITEMS_AT_ONCE),
            max_tokens=ITEMS_TOKENS,
            temperature=0.7,
            seed=seed,
            json_schema=ITEMS_SCHEMA,
        )
        written = json.loads(reply)["items"]
    except (ContextFull, json.JSONDecodeError, KeyError, TypeError):  # cut short, or not what was asked for
        return []
    items = []
    for each in written:
        answer, value = str(each["answer"]).strip(), str(each["key_words"]).strip()
        for question in (each["question"], *each["other_wordings"]):
            if not is_question(question.strip(), text):
                items.append(Item(text, question.strip(), answer, value, origin))
    return items


def open_book(talker: Talker, item: Item) -> str:
    """The model's answer to an item's question with the passage in view."""
    prompt = READ.format(passage=item.passage, question=item.question)
    try:
        return say(talker, prompt, max_tokens=ANSWER_TOKENS, temperature=0.0)
    except ContextFull:
        return ""


def say(talker: Talker, prompt: str, **sampling: Unpack[Sampling]) -> str:
    """One answer to one prompt."""
    return talker.chat([{"role": "user", "content": prompt}], **sampling)
