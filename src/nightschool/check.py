"""Checking study items: is an answer supported by its passage, did the model confirm it, is it said twice?

The model answers each question again with the passage in view. What it says is believed only as far as the
passage goes: the reply must give the passage's own words for what was asked, and names and numbers that stand
in neither passage nor question are made up. Where the rules know the answer, the reply must contain it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from nightschool.exam import normalise
from nightschool.statements import base_form
from nightschool.wordings import NUMBER

# Words that carry no fact: a reply may use them without finding them in the passage.
LIGHT = frozenset(
    "i you he she it we they me him her us them his its our their my your this that these those there "
    "here is are was were be been being am do does did has have had can could will would shall should may "
    "might must not no of in on at to for with from by about as into than then and or but if so because "
    "what which who whom whose when where why how many much very more most also just only own s t name "
    "called".split()
)
EMPTY = LIGHT | {"a", "an", "the"}
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
DECLINED = re.compile(
    r"\b(?:do not|don['’]t|cannot|can['’]t|not) (?:know|sure|say|tell|mentioned|stated|given|find)"
    r"|no (?:idea|information)|\bunknown\b",
    re.IGNORECASE,
)
NUMBER_WORD = re.compile(NUMBER)
# What a number counts must be what the passage counts.
UNITS = frozenset(
    "o'clock pound pounds pence euro euros dollar dollars cent cents percent metre metres mile miles "
    "kilometre kilometres kilo kilos kilogram kilograms gram grams litre litres degree degrees".split()
)
LONGEST_ANSWER = 40  # words
READ = "Here are some notes. {passage} {question}"  # how a passage and a question are put to a small model
ALIKE = 3  # letters at the beginning, of a word and what a small model made of it


@dataclass(frozen=True)
class Item:
    """One study item: a question about a passage and its answer, a whole sentence to be learned.

    `value` are the words of the passage that answer it; empty where the writer does not know. `origin` is who
    wrote it: rules, model, teacher. A restatement ("Tell me something about …") is never an exam's question.
    """

    passage: str
    question: str
    answer: str
    value: str = ""
    origin: str = "rules"
    restates: bool = False


@dataclass(frozen=True)
class Verdict:
    """What became of an item: kept, perhaps with a better answer; or the reason why not."""

    item: Item
    reason: str = ""  # empty: kept

    @property
    def is_kept(self) -> bool:
        return not self.reason


def judge(item: Item, reply: str) -> Verdict:
    """Hold the model's reply, given with the passage in view, against item and passage.

    An item of the rules whose reply fails keeps the passage's sentence as its answer: that is right by
    construction. An item of a model is dropped.
    """
    reply = one_sentence(reply)
    problem = unsupported(item, reply)
    if not problem:
        value = item.value or new_words(item, reply)
        return Verdict(replace(item, answer=reply, value=value))
    if item.origin == "rules":
        return Verdict(item)
    if item.value and item.answer and not unsupported(item, item.answer):
        return Verdict(item, f"not confirmed: {problem}")
    return Verdict(item, problem)


def one_sentence(reply: str) -> str:
    """The first line of a reply, without what a small model adds after its answer."""
    first = reply.strip().split("\n")[0].strip()
    end = re.match(r".+?[.!?](?=\s+[A-Z]|$)", first)
    return end[0] if end else first


def unsupported(item: Item, reply: str) -> str:
    """Why the reply is not supported by the passage; empty where it is."""
    if not reply or DECLINED.search(reply):
        return "the model found no answer in the passage"
    words = WORD.findall(reply)
    if len(words) > LONGEST_ANSWER:
        return "the answer is too long"
    known = {word.lower() for text in (item.passage, item.question) for word in parts(text)}
    invented = [word for word in parts(reply) if word.lower() not in known and is_name_or_number(word, reply)]
    if invented:
        return f"{invented[0]!r} does not stand in the passage"
    units = [word for word in parts(reply) if word.lower() in UNITS and base_form(word.lower()) not in known]
    if units and units[0].lower() not in known:
        return f"{units[0]!r} does not stand in the passage"
    if broken := garbled(item, reply):
        return f"{broken!r} does not stand in the passage"
    mixed = next(
        (pair for pair in names(reply) if pair not in names(item.passage + ". " + item.question)), None
    )
    if mixed:
        return f"{mixed!r} does not stand in the passage"
    if item.value:
        return "" if contains(reply, item.value) else "the answer is another one"
    return "" if new_words(item, reply) else "the answer says nothing from the passage"


def garbled(item: Item, reply: str) -> str:
    """A word that a small model broke: it begins like one of passage and question, and stands for it."""
    said, asked = ({word.lower() for word in parts(text)} for text in (reply, item.question))
    passage = {word.lower() for word in parts(item.passage)}
    known = {base_form(word) for word in passage | asked}
    lost = {word for word in passage & asked - said - LIGHT if len(word) > ALIKE}
    strange = [word for word in parts(reply) if base_form(word.lower()) not in known]
    return next((word for word in strange for each in lost if word.lower()[:ALIKE] == each[:ALIKE]), "")


def parts(text: str) -> list[str]:
    """Words, with possessives taken apart."""
    return [re.sub(r"['’]s?$", "", word) for word in WORD.findall(text)]


def is_name_or_number(word: str, text: str) -> bool:
    """A capital in the middle of a sentence, a digit, or a number in words."""
    if any(character.isdigit() for character in word) or NUMBER_WORD.fullmatch(word.lower()):
        return True
    return word[0].isupper() and not text.startswith(word)


def names(text: str) -> set[str]:
    """Names of two words: capitals next to each other."""
    words = parts(text)
    starts = {sentence.split()[0] for sentence in re.split(r"[.!?]\s+", text) if sentence.split()}
    return {
        f"{one} {two}"
        for one, two in pairwise(words)
        if one[0].isupper() and two[0].isupper() and one.lower() not in EMPTY
    } - starts


def contains(text: str, value: str) -> bool:
    """Whether the value's words stand in the text, in order and next to each other."""
    words, wanted = normalise(text), normalise(value)
    return any(words[at : at + len(wanted)] == wanted for at in range(len(words) - len(wanted) + 1))


def new_words(item: Item, reply: str) -> str:
    """The answer's value: the longest run of words in passage and reply that the question lacks."""
    passage = [word.lower() for word in parts(item.passage)]
    said = {word.lower() for word in parts(reply)}
    asked = {base_form(word.lower()) for word in parts(item.question)}
    best: list[str] = []
    run: list[str] = []
    for word in [*passage, ""]:
        if word in said and base_form(word) not in asked:
            run.append(word)
        else:
            best, run = max(best, trimmed(run), key=len), []
    return " ".join(best)


def trimmed(run: Sequence[str]) -> list[str]:
    """Without light words at either end."""
    kept = list(run)
    while kept and kept[0] in EMPTY:
        kept.pop(0)
    while kept and kept[-1] in EMPTY:
        kept.pop()
    return kept


def agreed(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Of a tiny model's items about one sentence, drop those whose answer came only once.

    Differently worded questions for one fact have one answer; one that nothing else led to most likely
    belongs to a question that the sentence does not answer.
    """
    said = Counter(key(verdict.item.answer) for verdict in verdicts if verdict.is_kept)
    lonely = "no other question led to this answer"
    return [
        replace(verdict, reason=lonely)
        if verdict.is_kept and verdict.item.origin == "model" and said[key(verdict.item.answer)] < 2
        else verdict
        for verdict in verdicts
    ]


def is_question(text: str, passage: str) -> str:
    """Why a text cannot be a question about the passage; empty where it can.

    It must be one line, end as a question, and name something that the passage names.
    """
    if not text.endswith(("?", ".")) or "\n" in text or not 3 <= len(text.split()) <= 25:
        return "not a question"
    if text.endswith(".") and not re.match(r"(?:Tell|Name|Say|Describe|Explain|Give)\b", text):
        return "not a question"
    names = {word for word in parts(passage) if word[0].isupper() and word.lower() not in LIGHT}
    asked = parts(text)
    strange = [
        word for word in asked[1:] if word[0].isupper() and word not in names and word not in parts(passage)
    ]
    if strange:
        return f"{strange[0]!r} does not stand in the passage"
    content = {word.lower() for word in parts(passage)} - EMPTY
    if not content & {word.lower() for word in asked}:
        return "asks about something else"
    return ""


def without_duplicates(items: Iterable[Item]) -> list[Verdict]:
    """Verdicts that drop repeated questions, and questions with different answers in different places."""
    items = list(items)
    values: dict[str, set[str]] = {}
    for item in items:
        if not item.restates:
            values.setdefault(key(item.question), set()).add(" ".join(normalise(item.value)))
    seen: set[tuple[str, str]] = set()
    found = []
    for item in items:
        mark = (key(item.question), key(item.answer) if item.restates else "")
        reason = ""
        if len(values.get(mark[0], ())) > 1 and not item.restates:
            reason = "the same question has several answers"
        elif mark in seen:
            reason = "asked before"
        seen.add(mark)
        found.append(Verdict(item, reason))
    return found


def key(text: str) -> str:
    """What makes two questions the same: their words."""
    return " ".join(normalise(text))


def gist(question: str) -> str:
    """What makes two questions nearly the same: "At which hour …" and "What hour …" are."""
    words = ("what" if word == "which" else word for word in normalise(question))
    return " ".join(word for word in words if word not in ("at", "in", "on", "to", "of", "do", "does", "did"))
