"""/v1/embeddings: vectors of texts or token ids, from an engine of its own.

A base that was made for vectors makes them as its file says; of any other, the mean over the tokens is taken.
Adapters take no part.
"""

import array
import base64
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field

from nightschool.server.chat_shapes import Asked, Text
from nightschool.server.facts import facts
from nightschool.server.models import Target, resolve
from nightschool.server.problems import ApiError
from nightschool.server.relay import Answer, Out
from nightschool.server.state import Here, State

PATH = "/v1/embeddings"
MAX_INPUTS = 2048
AT_ONCE = 64  # inputs in one request to llama.cpp

Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=1 << 17)]

router = APIRouter(tags=["embeddings"])


class EmbeddingRequest(Asked):
    """What to make vectors of."""

    model: str | None = None
    input: Text | Tokens | Annotated[list[Text] | list[Tokens], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Only the number that the model's vectors have"
    )

    @property
    def inputs(self) -> list[str | list[int]]:
        """The inputs one by one."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [[token for token in self.input if isinstance(token, int)]]
        return [each for each in self.input if isinstance(each, str | list)]


@router.post("/v1/embeddings")
async def create_embeddings(request: EmbeddingRequest, here: Here) -> Answer:
    """Make a vector of length one for each input."""
    target = resolve(request.model or here.settings.model)
    if target.adapters or target.memory:
        raise ApiError(400, f"Vectors come from a base alone: name {target.base.name!r}.", param="model")
    inputs = request.inputs
    vocabulary = facts(target.base).vocabulary
    if any(not isinstance(each, str) and max(each) >= vocabulary for each in inputs):
        raise ApiError(400, f"There is no such token: the model has {vocabulary:,}.", param="input")
    if any(each == "" for each in inputs):
        raise ApiError(400, "An empty text has no vector.", param="input")

    async def work(out: Out) -> None:
        vectors, tokens = await vectors_of(here, target, inputs)
        await out.json(_body(request, target.name, vectors, tokens=tokens))

    return Answer(work)


async def vectors_of(
    here: State, target: Target, inputs: Sequence[str | list[int]]
) -> tuple[list[list[float]], int]:
    """A vector for each text or list of token ids, and how many tokens were read."""
    vectors: list[list[float]] = []
    tokens = 0
    for start in range(0, len(inputs), AT_ONCE):
        body = {"input": inputs[start : start + AT_ONCE]}
        said = await here.engines.request(target, PATH, body, embedding=True)
        data = sorted(said["data"], key=lambda entry: entry["index"])
        vectors += [entry["embedding"] for entry in data]
        tokens += said["usage"]["prompt_tokens"]
    return vectors, tokens


def _body(
    request: EmbeddingRequest, model: str, vectors: list[list[float]], *, tokens: int
) -> dict[str, Any]:
    if request.dimensions not in (None, len(vectors[0])):
        raise ApiError(
            400, f"This model's vectors have {len(vectors[0])} dimensions, always.", param="dimensions"
        )
    packed = request.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": as_base64(vector) if packed else vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def as_base64(vector: list[float]) -> str:
    """float32, little-endian, as OpenAI's clients unpack it."""
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()
