"""What requests need to know of a base, read once: opening a file with a large vocabulary takes a while."""

from dataclasses import dataclass
from functools import lru_cache

from nightschool.answer import can_read
from nightschool.gguf import open_gguf
from nightschool.hub import Base
from nightschool.vectors import is_embedding_model


@dataclass(frozen=True)
class Facts:
    """A base, as far as requests depend on it."""

    vocabulary: int
    context: int  # tokens it was trained for
    reads: bool  # finds answers in a text
    knows_tools: bool  # its chat template does something with tools
    is_embedder: bool


def facts(base: Base) -> Facts:
    """Raises FileFormatError or UnsupportedModel for a bad file."""
    state = base.path.stat()
    return _read(base, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _read(base: Base, modified_ns: int, size_bytes: int) -> Facts:
    metadata = open_gguf(base.path).metadata
    architecture = metadata.get("general.architecture")
    return Facts(
        vocabulary=len(metadata.get("tokenizer.ggml.tokens", ())),
        context=int(metadata.get(f"{architecture}.context_length", 0)),
        reads=can_read(base),
        knows_tools="tools" in str(metadata.get("tokenizer.chat_template", "")),
        is_embedder=is_embedding_model(base),
    )
