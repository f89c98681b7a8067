"""Finding a sentence among others: stories and books, asked for by some of the words that one sentence has.

Generators have few words and few forms; plain texts have all of them. What is asked for is answered with the
sentence itself, so nothing has to be understood: which words are rare, and where they stand, is enough.
"""

import random
import re
from collections.abc import Sequence

from documents import Document
from everyday import Asked
from reading import in_pieces, laid_out, with_notes

from nightschool.statements import sentences

WORDS = range(5, 19)  # of a sentence
PLAIN = re.compile(r"[A-Z][A-Za-z0-9 ,;'-]+[.!]")
COMMON = frozenset(
    "about after again all also always and another any are around away back because been before but came can "
    "come could did does down each even every for from get give good had has have her here him his how into "
    "its just know like little made make many more most much must never not now off old one only other our "
    "out over own said saw say see she should some such than that the their them then there these they thing "
    "things this those through time too two under until very want wanted was way well went were what when "
    "where which while who will with would yes you your day was big very".split()
)
ABOUT = (
    "What does it say about {w}?",
    "What is said of {w}?",
    "What about {w}?",
    "What was it about {w}?",
    "Where is {w} mentioned?",
    "Tell me about {w}.",
    "What do you read about {w}?",
    "Something about {w}, what was that?",
    "I am looking for {w}.",
    "What do the notes say of {w}?",
)
HEADINGS = ("Notes", "From a book", "What I read", "Some lines", "Copied", "Reading")


def plain_runs(texts: Sequence[str]) -> list[list[str]]:
    """The plain sentences of each text that has at least three."""
    runs = [
        [text for text in sentences(each) if len(text.split()) in WORDS and PLAIN.fullmatch(text)]
        for each in texts
    ]
    return [run for run in runs if len(run) > 2]


def finding_chat(rng: random.Random, runs: Sequence[Sequence[str]], *, most: int) -> Document:
    """A page of three to `most` sentences of one text or of several, and a few questions for single ones."""
    count = rng.randint(3, most)
    page: list[str] = []
    while len(page) < count:
        run = rng.choice(runs)
        start = rng.randrange(len(run))
        page += run[start : start + rng.randint(1, most)]
    page = list(dict.fromkeys(page[:count]))
    if rng.random() < 0.5:
        rng.shuffle(page)
    asked: list[tuple[str, Document]] = []
    for target in rng.sample(page, len(page)):
        question = question_for(rng, target, [text for text in page if text != target])
        if question and len(asked) < 4:
            asked.append((question, found_sentence(target)))
    if not asked:
        return finding_chat(rng, runs, most=most)
    return with_notes(rng, laid_out(rng, rng.choice(HEADINGS), page), asked)


def found_sentence(text: str) -> Document:
    """The sentence as an answer."""
    *_, last = text.split()
    return in_pieces(Asked((), text, last, True), 1.0)


def question_for(rng: random.Random, target: str, others: Sequence[str]) -> str | None:
    """A question that only the target answers: by words of its own, or by how it begins or ends."""
    words = re.findall(r"[A-Za-z0-9'-]+", target)
    elsewhere = {stem(word) for text in others for word in re.findall(r"[A-Za-z0-9'-]+", text)}
    own = [at for at, word in enumerate(words) if is_telling(word) and stem(word) not in elsewhere]
    if not own:
        return None
    kind = rng.random()
    at = rng.choice(own)
    if kind < 0.3:  # one or two of its words
        picked = [at, *rng.sample(own, min(len(own), rng.randint(0, 2)))]
        return rng.choice(ABOUT).format(w=" and ".join(dict.fromkeys(words[each] for each in picked)))
    if kind < 0.55:  # a piece of it
        start = max(0, at - rng.randint(0, 3))
        piece = words[start : at + rng.randint(1, 3)]
        return rng.choice(ABOUT).format(w=" ".join(piece))
    if kind < 0.8 and own[0] < len(words) - 2:  # its beginning
        end = rng.randint(own[0] + 1, len(words) - 1)
        beginning = " ".join(words[:end])
        return f"{beginning} {rng.choice(('what?', 'where?', 'whom?', '…?', 'how?'))}"
    if own[-1] >= 2:  # its end
        start = rng.randint(1, own[-1])
        return f"{rng.choice(('Who', 'What', 'Who or what'))} {' '.join(words[start:])}?"
    return rng.choice(ABOUT).format(w=words[at])


def is_telling(word: str) -> bool:
    """Whether a word may pick out a sentence."""
    return len(word) > 2 and word.lower() not in COMMON


def stem(word: str) -> str:
    """A word without its ending, roughly."""
    return word.lower().removesuffix("'s")[:5]
