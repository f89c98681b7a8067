"""The bytes of single tokens, read off a vocabulary, and where each begins in a text.

A token may be part of a character, so only bytes can be put together; llama.cpp's /detokenize gives text.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

NORMAL, BYTE = 1, 6  # kinds of tokens in a GGUF
SPACE = "▁"  # SentencePiece's
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces:
    """The tokens of one vocabulary as bytes."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._texts: Sequence[str] = metadata.get("tokenizer.ggml.tokens", ())
        self._kinds: Sequence[int] = metadata.get("tokenizer.ggml.token_type", ()) or [NORMAL] * len(
            self._texts
        )
        self._is_byte_level = metadata.get("tokenizer.ggml.model") == "gpt2"

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, token: int) -> bytes:
        text, kind = self._texts[token], self._kinds[token]
        if kind == BYTE and (match := BYTE_TOKEN.fullmatch(text)):
            return bytes([int(match[1], 16)])
        if kind != NORMAL:
            return text.encode()
        if self._is_byte_level:
            return b"".join(BYTES.get(character) or character.encode() for character in text)
        return text.replace(SPACE, " ").encode()


def _byte_characters() -> dict[str, bytes]:
    """GPT-2's characters for the 256 bytes: printable ones stand for themselves, the others follow U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    found = {chr(byte): bytes([byte]) for byte in printable}
    return found | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}


BYTES = _byte_characters()


def shown(piece: bytes) -> str:
    """A token as OpenAI shows it: its text, or bytes:\\xe2\\x80 for part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def offsets(pieces: Sequence[bytes], text: str) -> list[int]:
    """Where in `text`, counted in characters, each of its tokens begins.

    Some tokenisers put a space before a text; then the first token begins before it, at 0.
    """
    starts = [0, *accumulate(len(piece) for piece in pieces)]  # in bytes
    whole = text.encode(errors="replace")
    shift = 1 if starts[-1] == len(whole) + 1 and b"".join(pieces[:1]).startswith(b" ") else 0
    characters = _characters_before(whole)
    return [characters[min(max(start - shift, 0), len(whole))] for start in starts[:-1]]


def _characters_before(whole: bytes) -> list[int]:
    """For each place among the bytes of a text, how many characters are complete before it."""
    ends = [0]
    for at in range(1, len(whole) + 1):
        is_end = at == len(whole) or whole[at] & 0xC0 != 0x80
        ends.append(ends[-1] + is_end)
    return ends
