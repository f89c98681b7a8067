"""The plain English in ember's training: TinyStories and public-domain books, from a folder the caller names.

Expected there, in text/: tinystories_cased_0.9MB.txt, tinystories_lower_4.2MB.txt, classic_books_90MB.tar.gz.
The lower-cased stories get their capitals back: sentence starts, "I", and words that the cased file nearly
always capitalises.
"""

import random
import re
import tarfile
from collections import Counter
from pathlib import Path

BOOKS_BYTES = 9_000_000
HELD_OUT_BYTES = 60_000


def stories(folder: Path) -> list[str]:
    """All stories, with capitals."""
    cased = (folder / "text" / "tinystories_cased_0.9MB.txt").read_text(encoding="utf-8")
    lower = (folder / "text" / "tinystories_lower_4.2MB.txt").read_text(encoding="utf-8")
    names = always_capitalised(cased)
    restored = [restore_capitals(story, names) for story in split_stories(lower[len(cased) :])]
    return split_stories(cased) + restored


def split_stories(text: str) -> list[str]:
    """Stories begin after a line end, with one of a few openings."""
    parts = re.split(
        r"\n(?=(?:once upon a time|one day|once there|there was|once,)\b)", text, flags=re.IGNORECASE
    )
    return [part.strip() for part in parts if len(part.strip()) > 100]


def always_capitalised(cased: str) -> set[str]:
    """Words that have a capital in the middle of sentences nine times out of ten."""
    upper = Counter(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", cased))
    small = Counter(re.findall(r"\b[a-z]+\b", cased))
    return {word for word, count in upper.items() if count > 2 and count > 9 * small[word.lower()]}


def restore_capitals(text: str, names: set[str]) -> str:
    """Capitals for names, for I, and for the starts of sentences and quotations."""
    text = re.sub(r"\b[a-z]+\b", lambda m: m[0].capitalize() if m[0].capitalize() in names else m[0], text)
    text = re.sub(r"\bi\b", "I", text)
    return re.sub(r"(^|[.!?]\s+|[.!?]\"\s+|\n|[,.!?:]\s\"|^\")([a-z])", lambda m: m[1] + m[2].upper(), text)


def books(folder: Path) -> list[str]:
    """Passages of whole paragraphs, about 600 characters each, from a fixed choice of books."""
    with tarfile.open(folder / "text" / "classic_books_90MB.tar.gz") as archive:
        members = sorted((m for m in archive.getmembers() if m.name.endswith(".md")), key=lambda m: m.name)
        random.Random(7).shuffle(members)
        passages: list[str] = []
        size = 0
        for member in members:
            file = archive.extractfile(member)
            if file is None or size > BOOKS_BYTES:
                continue
            text = file.read()[:200_000].decode("utf-8", errors="ignore")
            passages += split_passages(text)
            size += len(text)
    return passages


def split_passages(text: str) -> list[str]:
    """Plain prose paragraphs, joined up to about 600 characters; headings, verse and markup are left out."""
    passages: list[str] = []
    current = ""
    for paragraph in re.split(r"\n\s*\n", text):
        flat = " ".join(paragraph.split())
        if len(flat) < 60 or re.search(r"[*_#|\[\]{}<>]", flat) or not flat.isascii():
            continue
        current = f"{current}\n\n{flat}" if current else flat
        if len(current) > 400:
            passages.append(current)
            current = ""
    return passages


def general_texts(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """(stories, book passages, held-out texts); the held-out ones are in neither list."""
    told, written = stories(folder), books(folder)
    rng = random.Random(11)
    rng.shuffle(told)
    rng.shuffle(written)
    held, size = [], 0
    while size < HELD_OUT_BYTES:
        held += [told.pop(), written.pop()]
        size += len(held[-1]) + len(held[-2])
    return told, written, held
