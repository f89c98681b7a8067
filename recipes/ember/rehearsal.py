"""Rewrite rehearsal.txt, with which examine.py teaches: `python recipes/ember/rehearsal.py EMBER.GGUF`.

Ember tells stories and reads aloud, each time with another seed; an adapter trained beside these texts keeps
to what ember says. They are kept as plain text, without the chat around them: so they protect plain English
better (LOG.md). Texts with broken characters, which TinyStories has too, are left out.
"""

import sys
from pathlib import Path

from corpus import BOOK, STORY

from nightschool.engine import Engine

OUT = Path(__file__).resolve().parent / "rehearsal.txt"
COUNT = 480
BOOK_EVERY = 5
MAX_TOKENS = 130


def main(base: Path) -> None:
    """Write COUNT texts, less those that are left out."""
    texts = []
    with Engine(base) as engine:
        for index in range(COUNT):
            wordings = BOOK if index % BOOK_EVERY == 0 else STORY
            asked = {"role": "user", "content": wordings[index % len(wordings)]}
            told = engine.chat([asked], temperature=0.9, max_tokens=MAX_TOKENS, seed=index)
            text = whole_sentences(told)
            if text.isascii() and len(text) > 120:
                texts.append(text)
    OUT.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    print(f"{OUT.name}: {len(texts)} texts")


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence."""
    ends = [text.rfind(mark) + len(mark.rstrip()) for mark in (". ", '." ', ".\n", '."\n') if mark in text]
    return text[: max(ends)] if ends else text


if __name__ == "__main__":
    main(Path(sys.argv[1]))
