"""Answer a question with a sentence of the notes, word for word: for bases that are too small to read them.

A sentence is as good as the words of the question that stand in it, each by its weight. Those in the headings
and the sentences before it count too, but less, unless it points back to them: in "Ann Hale has the front
room. She keeps bees." the second sentence is about Ann Hale. Where several sentences in a row are equally
good, they are quoted together.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nightschool.chunks import SEPARATOR
from nightschool.index import Hit, found_in

MAX_CHARACTERS = 400  # of a quotation
IN_CONTEXT = 0.6  # what a word in a heading or the sentence before is worth, beside one in the sentence
POINTED_AT = 0.95  # and one in a sentence that this one points back to
FURTHER_BACK = 0.8  # for each sentence more that lies between
NEARLY = 0.5  # sentences whose scores lie so close are equally good
KIND = 1.0  # for a number where one is asked for, or a name
PER_RANK = 0.1  # less for each chunk that the search put before this one
# A sentence that begins with one of these is understood only with the one before it.
POINTING = re.compile(r"(he|she|it|they|his|her|its|their|this|these|that|those|there|both)\b", re.IGNORECASE)
NO_END = r"(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|Ms|Jr|No|vs)\.)(?<!\bMrs\.)(?<!\bProf\.)"  # abbreviations
END = re.compile(
    rf"(?<=[.!?…]){NO_END}[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9\[*_-])"  # a full stop, a capital letter
    r"|\n\s*\n|\n(?=\s*[-*•|#]|\s*\d+[.)] )"  # a paragraph, an item of a list, a row
)
ASKS_FOR_NUMBER = re.compile(
    r"\b(when|how (old|many|much|long|far|often|high|tall)|which (year|hour|day)"
    r"|what (is the )?(time|year|age|size|day|date|number|price))\b",
    re.IGNORECASE,
)
NUMBER = re.compile(
    r"\d|\b(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thir|fif|twen|for|half|quarter"
    r"|dozen|hundred|thousand|noon|midnight|mon|tues|wednes|thurs|fri|satur|sun)",
    re.IGNORECASE,
)
ASKS_FOR_NAME = re.compile(r"\b(who|whom|whose)\b", re.IGNORECASE)
NAME = re.compile(r"\b[A-Z]\w+")


@dataclass(frozen=True)
class Quotation:
    """A passage of a hit."""

    text: str
    hit: Hit


def best_quotation(question: str, hits: Sequence[Hit], weights: Mapping[str, float]) -> Quotation | None:
    """The sentences that answer a question best, with what they point back to; None where there are none.

    Args:
        weights: what each word of the question is worth (Index.weights).
    """
    best: tuple[float, Quotation] | None = None
    for rank, hit in enumerate(hits):
        texts, scores = scored(question, hit, weights)
        if not scores:
            continue
        at = max(range(len(texts)), key=lambda at: (scores[at], -at))
        score = scores[at] - PER_RANK * rank
        if best is None or score > best[0]:
            best = score, Quotation(_passage(texts, scores, at), hit)
    return best[1] if best else None


def scored(question: str, hit: Hit, weights: Mapping[str, float]) -> tuple[list[str], list[float]]:
    """The sentences of a chunk, and how well each answers the question."""
    headings = hit.heading.split(SEPARATOR)
    texts = [text for text in sentences(hit.text) if text not in headings]
    scores = [
        sum(weights[word] * share for word, share in worth.items()) + _kind(question, text)
        for text, worth in zip(texts, _worths(hit, texts, weights), strict=True)
    ]
    return texts, scores


def _worths(hit: Hit, texts: Sequence[str], weights: Mapping[str, float]) -> list[dict[str, float]]:
    """For each sentence, which words of the question it has, in itself (1) or by what stands before it."""
    above, *found = found_in([f"{hit.title}\n{hit.heading}", *texts], [*weights])
    worths: list[dict[str, float]] = []
    for text, words in zip(texts, found, strict=True):
        worth = dict.fromkeys(above, IN_CONTEXT)
        for word, share in (worths[-1] if worths else {}).items():
            carried = (
                min(share, POINTED_AT) if POINTING.match(text) else min(share * FURTHER_BACK, IN_CONTEXT)
            )
            worth[word] = max(worth.get(word, 0.0), carried)
        worths.append(worth | dict.fromkeys(words, 1.0))
    return worths


def _kind(question: str, sentence: str) -> float:
    """A bonus for what the question asks for."""
    if ASKS_FOR_NUMBER.search(question):
        return KIND if NUMBER.search(sentence) else 0.0
    if ASKS_FOR_NAME.search(question):
        asked = set(NAME.findall(question))
        return KIND if any(name not in asked for name in NAME.findall(sentence)[1:]) else 0.0
    return 0.0


def _passage(texts: Sequence[str], scores: Sequence[float], at: int) -> str:
    """A sentence, those after it that are as good, those before that it points back to."""
    first, last = at, at
    while first > 0 and POINTING.match(texts[first]) and at - first < 2:
        first -= 1
    while last + 1 < len(texts) and scores[last + 1] >= scores[at] - NEARLY:
        last += 1
    while first < last and len(" ".join(texts[first : last + 1])) > MAX_CHARACTERS:
        if last > at:
            last -= 1
        else:
            first += 1
    quotation = " ".join(texts[first : last + 1])
    return quotation if len(quotation) <= MAX_CHARACTERS else quotation[: MAX_CHARACTERS - 1].rstrip() + "…"


def sentences(text: str) -> list[str]:
    """The sentences of a passage, each on one line, without the marks of lists and headings."""
    return [sentence for sentence in _sentences(text) if re.search(r"\w", sentence)]


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for match in END.finditer(text):
        yield _one_line(text[start : match.end()])
        start = match.end()
    yield _one_line(text[start:])


def _one_line(text: str) -> str:
    return re.sub(r"^(#{1,6}\s|[-*•]\s|>\s)+", "", " ".join(text.split()))
