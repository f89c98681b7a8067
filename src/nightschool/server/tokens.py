"""Texts as the tokens of a model and back, with vLLM's routes: evaluation programs look for them there.

    POST /tokenize        {"model"?, "prompt", "add_special_tokens"?} → {"tokens", "count", "max_model_len"}
    POST /detokenize      {"model"?, "tokens"} → {"prompt"}
    GET  /tokenizer_info  marks and chat template

Where no model is named it is the server's own.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from nightschool.gguf import open_gguf
from nightschool.server.chat_shapes import Text
from nightschool.server.facts import facts
from nightschool.server.models import Target, resolve
from nightschool.server.problems import ApiError
from nightschool.server.state import Here, State

MAX_TOKENS = 1 << 18

router = APIRouter(tags=["tokens"])

Name = Annotated[str, Field(max_length=512)]


class Tokenize(BaseModel):
    """A text."""

    model: Name | None = None
    prompt: Text
    add_special_tokens: bool = True


class Tokenized(BaseModel):
    """Its tokens."""

    tokens: list[int]
    count: int
    max_model_len: int


class Detokenize(BaseModel):
    """Tokens."""

    model: Name | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=MAX_TOKENS)]


class Detokenized(BaseModel):
    """Their text; bytes that are no UTF-8 become U+FFFD."""

    prompt: str


class TokenizerInfo(BaseModel):
    """What a vocabulary is, and how a conversation is written in it."""

    tokenizer_class: str
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None


@router.post("/tokenize")
async def tokenize(asked: Tokenize, here: Here) -> Tokenized:
    """Give the tokens of a text."""
    target = resolve(asked.model or here.settings.model)
    body = {"content": asked.prompt, "add_special": asked.add_special_tokens, "parse_special": True}
    tokens: list[int] = (await _ask(here, target, "/tokenize", body))["tokens"]
    return Tokenized(tokens=tokens, count=len(tokens), max_model_len=facts(target.base).context)


@router.post("/detokenize")
async def detokenize(asked: Detokenize, here: Here) -> Detokenized:
    """Give the text of tokens."""
    target = resolve(asked.model or here.settings.model)
    vocabulary = facts(target.base).vocabulary
    if any(token >= vocabulary for token in asked.tokens):
        raise ApiError(400, f"There is no such token: the model has {vocabulary:,}.", param="tokens")
    said = await _ask(here, target, "/detokenize", {"tokens": asked.tokens})
    return Detokenized(prompt=said["content"])


async def _ask(here: State, target: Target, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return await here.engines.request(target, path, body, embedding=facts(target.base).is_embedder)


@router.get("/tokenizer_info")
def tokenizer_info(here: Here, model: Annotated[str | None, Query(max_length=512)] = None) -> TokenizerInfo:
    """Describe a model's vocabulary."""
    metadata = open_gguf(resolve(model or here.settings.model).base.path).metadata
    tokens: list[str] = metadata.get("tokenizer.ggml.tokens", [])

    def mark(name: str) -> str | None:
        id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        return tokens[id] if isinstance(id, int) and id < len(tokens) else None

    return TokenizerInfo(
        tokenizer_class=str(metadata.get("tokenizer.ggml.model", "")),
        vocab_size=len(tokens),
        bos_token=mark("bos"),
        eos_token=mark("eos"),
        chat_template=metadata.get("tokenizer.chat_template"),
    )
