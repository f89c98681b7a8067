"""Memory in a chat: what is remembered is put before the model, and its answer says where it is from.

The text carries numbers like [1]; the message's `annotations` say what they stand for:

    {"type": "file_citation", "number": 1, "start_index": 21, "end_index": 24, "filename": "boats.md",
     "file_id": "", "index": 21, "heading": "Boathouse › Keys", "quote": "…"}

which is OpenAI's file citation with number, heading and quote added.
"""

import re
from collections.abc import Sequence
from typing import Any

from nightschool.answer import NOT_KNOWN, REFERENCE, Citation, Grounded, Memory, Message, cited, quote
from nightschool.library import short_label
from nightschool.server.choices import Ending
from nightschool.server.facts import facts
from nightschool.server.models import Target
from nightschool.server.problems import ApiError
from nightschool.server.state import State

UNFINISHED = re.compile(r"\s*\[\d{0,2}$")  # may become a reference with the next piece


async def grounded(here: State, target: Target, messages: Sequence[Message]) -> Grounded:
    """The conversation with what was found for its last question."""
    question, before = asked(messages)
    async with here.engines.using(target) as engine:
        return await here.searching.on(lambda index: Memory(index, engine).ground(question, before=before))


async def quotation(here: State, target: Target, messages: Sequence[Message]) -> dict[str, Any] | None:
    """For a base too small to read: the best sentence, as text and annotations.

    None where no note fits and adapters may know: then the model is asked.
    """
    question, _ = asked(messages)
    async with here.engines.using(target) as engine:
        answer = await here.searching.on(lambda index: quote(question, index, engine))
    if not answer.known and target.adapters:
        return None
    return {"text": answer.text, "annotations": annotations(answer.text, answer.citations)}


def needs_quoting(target: Target) -> bool:
    """Whether a base cannot be trusted with notes in its prompt."""
    return not facts(target.base).reads


def asked(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """The last question and what was said before it. Raises ApiError where the last turn is no question."""
    last = messages[-1]
    if last["role"] != "user" or not last["content"].strip():
        raise ApiError(400, "With memory, the last message must be the user's question.", param="messages")
    return last["content"], messages[:-1]


def annotations(text: str, citations: Sequence[Citation]) -> list[dict[str, Any]]:
    """What the numbers in a text stand for, each once, where it first stands."""
    known = {citation.number: citation for citation in citations}
    found: dict[int, dict[str, Any]] = {}
    for match in REFERENCE.finditer(text):
        number = int(match[1])
        if number in known and number not in found:
            found[number] = _annotation(known[number], match.start(), match.end())
    return list(found.values())


def _annotation(citation: Citation, start: int, end: int) -> dict[str, Any]:
    return {
        "type": "file_citation",
        "number": citation.number,
        "start_index": start,
        "end_index": end,
        "index": start,
        "file_id": "",
        "filename": short_label(citation.source),
        "heading": citation.heading,
        "quote": citation.text,
    }


class Citing:
    """Leaves out references to notes that there are none of; adds the nearest where an answer makes none."""

    def __init__(self, citations: Sequence[Citation]) -> None:
        self._citations = citations
        self._said = ""
        self._held = ""

    def piece(self, text: str) -> str:
        text = self._held + text
        cut = UNFINISHED.search(text)
        self._held = text[cut.start() :] if cut else ""
        return self._say(text[: cut.start()] if cut else text)

    def _say(self, text: str) -> str:
        text = REFERENCE.sub(self._known, text)
        self._said += text
        return text

    def _known(self, match: re.Match[str]) -> str:
        return match[0] if 0 < int(match[1]) <= len(self._citations) else ""

    def end(self) -> Ending:
        rest = self._say(self._held)
        if self._said.strip() and not REFERENCE.search(self._said) and not NOT_KNOWN.match(self._said):
            nearest = cited(self._said, self._citations).citations
            added = "".join(f" [{citation.number}]" for citation in nearest)
            rest += added
            self._said += added
        return Ending(rest, {"annotations": annotations(self._said, self._citations)})
