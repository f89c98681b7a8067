"""A document is text with headings, and is cut into chunks: passages short enough to be put before a model.

The chunks of a document lie end to end: every character is in exactly one. A cut falls where a section
begins, else between paragraphs, else between lines or sentences, else between words.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

TARGET_CHARACTERS = 700  # about 170 tokens: three chunks and a question make 600
MAX_CHARACTERS = 900
MAX_DOCUMENT = 20_000_000  # characters; a novel has one million
# Where a text may be cut, best first; a cut falls after the match.
SEAMS = (
    re.compile(r"\n[ \t]*\n\s*"),
    re.compile(r"\n"),
    re.compile(r"[.!?…][\"'”’)\]]*\s+"),
    re.compile(r"\s+"),
)
SEPARATOR = " › "


@dataclass(frozen=True)
class Heading:
    """A heading and where it stands: document.text[start:stop] is its line. level 1 is the outermost."""

    start: int
    stop: int
    level: int
    text: str


@dataclass(frozen=True)
class Document:
    """What can be read of a file."""

    title: str
    text: str
    headings: tuple[Heading, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """text is document.text[start:stop]; heading is the path of headings above it."""

    position: int
    start: int
    stop: int
    heading: str
    text: str


def cut(document: Document) -> list[Chunk]:
    """The chunks of a document, in order; none for one without words."""
    text = document.text
    spans = [span for section in _sections(document) for span in _cut(text, *section)]
    spans = _without_empty(text, spans)
    return [
        Chunk(position, start, stop, heading_path(document, start, stop), text[start:stop])
        for position, (start, stop) in enumerate(spans)
    ]


def heading_path(document: Document, start: int, stop: int) -> str:
    """The headings above a passage, outermost first; those it begins with are part of it."""
    path: list[tuple[int, str]] = []
    end = start
    for heading in document.headings:
        if heading.start > end and document.text[end : heading.start].strip():
            break
        if heading.start >= stop:
            break
        path = [entry for entry in path if entry[0] < heading.level] + [(heading.level, heading.text)]
        end = max(end, heading.stop)
    return SEPARATOR.join(text for _, text in path)


def _sections(document: Document) -> Iterator[tuple[int, int]]:
    """Spans from heading to heading; a heading with nothing under it belongs to the next section."""
    begin, last_stop = 0, 0
    for heading in document.headings:
        if document.text[last_stop : heading.start].strip():
            yield begin, heading.start
            begin = heading.start
        last_stop = heading.stop
    yield begin, len(document.text)


def _cut(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut a section into spans of at most MAX_CHARACTERS."""
    while stop - start > MAX_CHARACTERS:
        middle = _seam(text, start, stop)
        yield start, middle
        start = middle
    if start < stop:
        yield start, stop


def _seam(text: str, start: int, stop: int) -> int:
    """The last good place for a cut before the target; a little after it where the rest is short."""
    if stop - start < 2 * TARGET_CHARACTERS:  # two even parts rather than a long and a tiny one
        limit = start + (stop - start) // 2 + TARGET_CHARACTERS // 5
    else:
        limit = start + TARGET_CHARACTERS
    earliest = start + TARGET_CHARACTERS // 4
    for seam in SEAMS:
        places = [match.end() for match in seam.finditer(text, start, limit) if match.end() >= earliest]
        if places:
            return places[-1]
    return limit


def _without_empty(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans without words join the one before them, or the one after where they come first."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and not (text[start:stop].strip() and text[slice(*joined[-1])].strip()):
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return [span for span in joined if text[slice(*span)].strip()]
