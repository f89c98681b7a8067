"""Conversations → text by the base's chat template, tens of thousands of them.

Only the engine renders a template. It takes up to 6 ms for one text (llama.cpp studies the template anew each
time), so a conversation's *shape* (the roles of its turns) is rendered once, with marks for the contents, and
the contents are put where the marks came out. That is done only for contents a template cannot be curious
about: with no white space at the ends, and none of the strings that the template writes or asks for. All
others go to the engine, and so does everything if a sample does not come out the same both ways.
"""

import re
from collections.abc import Sequence

from nightschool.datasets import Message
from nightschool.engine import Engine
from nightschool.errors import EngineError
from nightschool.gguf import open_gguf

MARK = "zq{}\n\"<'&\\é qz"  # a filter that changes quotes, line ends or letters would change this
SAMPLE = 24
LITERAL = re.compile(r"""'([^'\n]*)'|"([^"\n]*)\"""")
ASKED = re.compile(
    r"""(?:(?:with|split|replace|find|count|index)\(\s*|== *)['"](.+?)['"]|['"]([^'"]+)['"]\s+in\s"""
)

Shape = tuple[tuple[str, ...], bool]  # the roles, and whether an answer is to follow


class Renderer:
    """Renders for one engine; `fast` turns False when contents cannot be put into shapes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.fast = True
        self._telling = telling(str(open_gguf(engine.base).metadata.get("tokenizer.chat_template", "")))
        self._shapes: dict[Shape, list[str] | None] = {}

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """What `engine.apply_template` returns for these messages."""
        shape = tuple(message.role for message in messages), add_generation_prompt
        contents = [message.content for message in messages]
        if self.fast and all(map(self._is_plain, contents)):
            if shape not in self._shapes:
                self._shapes[shape] = self._study(shape)
            parts = self._shapes[shape]
            if parts is not None:
                return _fill(parts, contents)
        return self._ask(shape, contents)

    def check(self, conversations: Sequence[Sequence[Message]]) -> None:
        """Render a sample both ways; where they differ, the engine renders everything from now on."""
        step = max(1, len(conversations) // SAMPLE)
        for messages in conversations[::step]:
            for prompt in (False, True):
                self.fast = self.fast and self._agree(messages, prompt)

    def _agree(self, messages: Sequence[Message], prompt: bool) -> bool:
        shape = tuple(message.role for message in messages), prompt
        try:
            exact = self._ask(shape, [message.content for message in messages])
        except EngineError:  # a template that refuses some contents has to see all of them
            return False
        return self.render(messages, add_generation_prompt=prompt) == exact

    def _is_plain(self, content: str) -> bool:
        return (
            bool(content) and content.strip() == content and not any(map(content.__contains__, self._telling))
        )

    def _study(self, shape: Shape) -> list[str] | None:
        """The text between the marks and the number of each mark by turns; None if one does not come out."""
        marks = [MARK.format(number) for number in range(len(shape[0]))]
        text = self._ask(shape, marks)
        if not all(mark in text for mark in marks):
            return None
        return re.split(re.escape(MARK).replace(r"\{\}", r"(\d+)"), text)

    def _ask(self, shape: Shape, contents: Sequence[str]) -> str:
        roles, prompt = shape
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
        return self.engine.apply_template(messages, add_generation_prompt=prompt)


def telling(template: str) -> tuple[str, ...]:
    """What in a message may make a template do something else: its own marks, and what it asks for."""
    written = {single or double for single, double in LITERAL.findall(template)}
    marks = {text.replace("\\n", "\n").strip() for text in written if re.search(r"[<>\[\]{}|]", text)}
    asked = {(first or second).replace("\\n", "\n") for first, second in ASKED.findall(template)}
    roles = {"system", "user", "assistant", "tool", "string"}
    return tuple({text for text in marks if len(text) > 2} | (asked - roles))


def _fill(parts: list[str], contents: Sequence[str]) -> str:
    filled = parts.copy()
    filled[1::2] = [contents[int(number)] for number in parts[1::2]]
    return "".join(filled)
