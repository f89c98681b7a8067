"""The part of Ollama's API that only reads (/api/…), for clients that know nothing else.

Answers are made as those of /v1/chat/completions are, and said in Ollama's words: a line of JSON for each
piece, or one object with "stream": false. What would change models is refused: pull, create, copy and delete
belong to the command line.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from nightschool.gguf import open_gguf
from nightschool.hub import Base
from nightschool.server import choices, citing, tools
from nightschool.server.chat_shapes import ChatRequest
from nightschool.server.choices import Order
from nightschool.server.embeddings import vectors_of
from nightschool.server.facts import facts
from nightschool.server.models import Target, list_models, resolve
from nightschool.server.ollama_shapes import (
    FOREVER,
    LATEST,
    Chat,
    Embed,
    Embeddings,
    Generation,
    Prompt,
    Show,
)
from nightschool.server.own.machine import describe_base
from nightschool.server.problems import ApiError
from nightschool.server.relay import Answer, Out, Work
from nightschool.server.state import Here, State

OLLAMA_VERSION = "0.12.6"  # whose API this follows: clients ask before they use what is newer
READ_ONLY = {"create", "copy", "delete", "pull", "push", "blobs"}
KNOWN = {"version", "tags", "ps", "show", "chat", "generate", "embed", "embeddings"}
COMPLETIONS = "/v1/completions"
MARKS = 2  # tokens that a model may put before and after a text; all others have at least a byte

Json = dict[str, Any]


def refused(error: ApiError) -> Response:
    """A refusal before anything was said."""
    return JSONResponse({"error": error.message}, error.status)


class Lines(Out):
    """A line of JSON for each piece."""

    headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-cache")]

    async def event(self, body: Mapping[str, Any]) -> None:
        await self.write(json.dumps(body, separators=(",", ":")).encode() + b"\n")

    async def fail(self, error: ApiError) -> None:
        if self.has_begun:
            await self.event({"error": error.message})
            await self.end()
        else:
            await self.respond(refused(error))


router = APIRouter(prefix="/api", tags=["ollama"])


# What is here -------------------------------------------------------------------------------------


@router.get("/version")
def version() -> dict[str, str]:
    """The version of Ollama whose API this follows."""
    return {"version": OLLAMA_VERSION}


@router.get("/tags")
def tags() -> Json:
    """List bases, and adapters on their bases."""
    return {"models": [_listed(resolve(model.id)) for model in list_models().data]}


@router.get("/ps")
def running(here: Here) -> Json:
    """List the bases that an engine runs for."""
    models = [_listed(Target(base.name, base)) for base in here.engines.bases]
    end = datetime.now(UTC).isoformat()
    return {"models": [{**model, "expires_at": end, "size_vram": 0} for model in models]}


def _listed(target: Target) -> Json:
    name = target.name if ":" in target.name else target.name + LATEST
    state = target.base.path.stat()
    digest = hashlib.sha256(f"{name} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()
    return {
        "name": name,
        "model": name,
        "modified_at": _iso(state.st_mtime),
        "size": state.st_size,
        "digest": digest,
        "details": _details(target.base),
    }


def _details(base: Base) -> Json:
    found = describe_base(base)
    return {
        "parent_model": "",
        "format": "gguf",
        "family": found.architecture,
        "families": [found.architecture],
        "parameter_size": _short(found.parameters),
        "quantization_level": found.quantisation,
    }


def _short(count: int) -> str:
    """5606656 → 5.6M"""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


@router.post("/show")
def show(asked: Show) -> Json:
    """Describe a model."""
    name = (asked.model or asked.name).removesuffix(LATEST)
    target = resolve(name)
    metadata = open_gguf(target.base.path).metadata
    known = facts(target.base)
    plain = {
        key: value
        for key, value in metadata.items()
        if isinstance(value, str | int | float | bool) and not key.startswith("tokenizer.")
    }
    talks = ["embedding"] if known.is_embedder else ["completion"]
    return {
        "modelfile": f"FROM {name}\n",
        "parameters": "",
        "template": str(metadata.get("tokenizer.chat_template", "")),
        "modified_at": _iso(target.base.path.stat().st_mtime),
        "details": _details(target.base),
        "model_info": {**plain, "general.parameter_count": describe_base(target.base).parameters},
        "capabilities": talks + (["tools"] if known.knows_tools else []),
    }


# Answers ------------------------------------------------------------------------------------------


@router.post("/chat")
async def chat(asked: Chat, here: Here) -> Response:
    """Answer a conversation, a line of JSON for each piece."""
    target = talking(asked.name)
    telling = Telling(asked, lambda said: {"message": {"role": "assistant", **said}})
    if not asked.messages:
        return Answer(_loading(here, target, telling), Lines)
    request = asked.for_openai([message.for_openai() for message in asked.messages], tools=asked.tools)
    return Answer(_answering(here, target, request, telling), Lines)


@router.post("/generate")
async def generate(asked: Prompt, here: Here) -> Response:
    """Answer a prompt; with `raw`, go on with it as it stands."""
    target = talking(asked.name)
    asked.check()
    telling = Telling(asked, _as_response)
    if not asked.prompt:
        return Answer(_loading(here, target, telling), Lines)
    request = asked.for_openai(asked.messages())
    if asked.raw:
        return Answer(_going_on(here, target, request, asked.prompt, telling), Lines)
    return Answer(_answering(here, target, request, telling), Lines)


def talking(name: str) -> Target:
    """What a name means. Raises ApiError where there is nothing of it, or it makes vectors."""
    target = resolve(name)
    if facts(target.base).is_embedder:
        raise ApiError(400, f"{name!r} makes vectors and does not answer: use /api/embed.")
    return target


def _as_response(said: Json) -> Json:
    return {"response": said.get("content", ""), **{k: v for k, v in said.items() if k == "thinking"}}


class Telling:
    """Says an answer in Ollama's words while its pieces come in OpenAI's; `form` makes a piece's fields."""

    def __init__(self, asked: Generation, form: Callable[[Json], Json]) -> None:
        self._asked, self._form = asked, form
        self._said: dict[str, str] = {"content": "", "thinking": ""}
        self._calls: dict[int, Json] = {}
        self._reason, self._usage = "stop", {"prompt_tokens": 0, "completion_tokens": 0}
        self._began = time.perf_counter_ns()
        self._first = 0

    async def hear(self, chunk: Json, out: Out) -> None:
        """One chunk of a chat completion."""
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            self._reason = choice["finish_reason"] or self._reason
            delta = choice["delta"]
            for call in delta.get("tool_calls") or []:
                self._hear_call(call)
            pieces = {"content": delta.get("content"), "thinking": delta.get("reasoning_content")}
            await self.say({name: text for name, text in pieces.items() if text}, out)

    def _hear_call(self, call: Json) -> None:
        known = self._calls.setdefault(call["index"], {"name": "", "arguments": ""})
        for name, text in call["function"].items():
            known[name] += text or ""

    async def say(self, pieces: dict[str, str], out: Out) -> None:
        """Send pieces on, or keep them for the end."""
        if not pieces:
            return
        self._first = self._first or time.perf_counter_ns()
        if self._asked.stream:
            await out.event(self._frame() | self._form({"content": "", **pieces}) | {"done": False})
            return
        for name, text in pieces.items():
            self._said[name] += text

    async def finish(self, out: Out, *, reason: str | None = None) -> None:
        """The last line, or the whole answer."""
        said: Json = {"content": self._said["content"]}
        if self._said["thinking"]:
            said["thinking"] = self._said["thinking"]
        if self._calls:
            said["tool_calls"] = [{"function": _call(call)} for _, call in sorted(self._calls.items())]
        last = self._frame() | self._form(said) | {"done": True, "done_reason": reason or self._done_reason()}
        last |= self._figures()
        if self._asked.stream:
            await out.event(last)
            await out.end()
        else:
            await out.json(last)

    def _done_reason(self) -> str:
        return "length" if self._reason == "length" else "stop"

    def _frame(self) -> Json:
        return {"model": self._asked.model, "created_at": _iso(time.time())}

    def _figures(self) -> Json:
        """Durations in nanoseconds: until the first piece the prompt is read, from then on it is answered."""
        now = time.perf_counter_ns()
        first = self._first or now
        return {
            "total_duration": now - self._began,
            "load_duration": 0,
            "prompt_eval_count": self._usage["prompt_tokens"],
            "prompt_eval_duration": first - self._began,
            "eval_count": self._usage["completion_tokens"],
            "eval_duration": now - first,
        }


def _call(call: Json) -> Json:
    try:
        arguments = json.loads(call["arguments"] or "{}")
    except ValueError:  # cut off by num_predict
        arguments = {}
    return {"name": call["name"], "arguments": arguments if isinstance(arguments, dict) else {}}


def _loading(here: State, target: Target, telling: Telling) -> Work:
    """Nothing is asked: only have the model ready."""

    async def work(out: Out) -> None:
        async with here.engines.lease(target):
            pass
        await telling.finish(out, reason="load")

    return work


def _answering(here: State, target: Target, request: ChatRequest, telling: Telling) -> Work:
    """The answer to a conversation."""

    async def work(out: Out) -> None:
        async def emit(chunk: Json) -> None:
            await telling.hear(chunk, out)

        found = await _order(here, target, request)
        if isinstance(found, Order):
            await choices.stream(here.engines, found, emit, with_usage=True)
        else:
            await choices.emit_spoken(found, emit, with_usage=True)
        await telling.finish(out)

    return work


async def _order(here: State, target: Target, request: ChatRequest) -> Order | Json:
    """What to ask of llama.cpp, or what can be said without it: a quotation."""
    body = request.for_engine()
    if target.memory and citing.needs_quoting(target):
        found = await citing.quotation(here, target, body["messages"])
        if found is not None:
            return choices.spoken(target, found["text"], fields={})
    elif target.memory:
        grounded = await citing.grounded(here, target, body["messages"])
        with_notes = {**body, "messages": grounded.messages}
        return Order(
            target, with_notes, seed=request.seed, rewriter=lambda: citing.Citing(grounded.citations)
        )
    offered = tools.offered(request)
    if offered and facts(target.base).knows_tools:
        return Order(target, body | tools.native(offered, parallel=None), seed=request.seed)
    if offered and facts(target.base).reads:
        described = tools.described(body, offered, required=False)
        return Order(target, described, seed=request.seed, rewriter=tools.Calling)
    return Order(target, body, seed=request.seed)


def _going_on(here: State, target: Target, request: ChatRequest, prompt: str, telling: Telling) -> Work:
    """What follows a text, without any template."""
    body = request.sampling() | {"prompt": prompt, "max_tokens": request.max_tokens or FOREVER}
    body["stream_options"] = {"include_usage": True}
    if request.response_format and (grammar := request.response_format.grammar()):
        body["grammar"] = grammar

    async def work(out: Out) -> None:
        async with aclosing(here.engines.events(target, COMPLETIONS, body)) as events:
            async for event in events:
                pieces = [
                    {"delta": {"content": choice["text"]}, "finish_reason": choice["finish_reason"]}
                    for choice in event["choices"]
                ]
                await telling.hear({"choices": pieces, "usage": event.get("usage")}, out)
        await telling.finish(out)

    return work


# Vectors ------------------------------------------------------------------------------------------


@router.post("/embed")
async def embed(asked: Embed, here: Here) -> Json:
    """Make a vector of length one for each text."""
    began = time.perf_counter_ns()
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    vectors, tokens = await _vectors(here, asked.model, texts, truncate=asked.truncate)
    if vectors and asked.dimensions not in (None, len(vectors[0])):
        raise ApiError(400, f"This model's vectors have {len(vectors[0])} dimensions, always.")
    return {
        "model": asked.model,
        "embeddings": vectors,
        "total_duration": time.perf_counter_ns() - began,
        "load_duration": 0,
        "prompt_eval_count": tokens,
    }


@router.post("/embeddings")
async def embeddings(asked: Embeddings, here: Here) -> Json:
    """Make a vector of one text: the older form."""
    vectors, _ = await _vectors(here, asked.model, [asked.prompt] if asked.prompt else [], truncate=True)
    return {"embedding": vectors[0] if vectors else []}


async def _vectors(
    here: State, model: str, texts: Sequence[str], *, truncate: bool
) -> tuple[list[list[float]], int]:
    """A vector for each text, and how many tokens were read."""
    target = resolve(model.removesuffix(LATEST))
    if target.adapters or target.memory:
        raise ApiError(400, f"Vectors come from a base alone: name {target.base.name!r}.")
    if any(not text for text in texts):
        raise ApiError(400, "An empty text has no vector.")
    inputs: list[str | list[int]] = list(texts)
    if truncate and texts:
        engine = await here.engines.engine(target, embedding=True)
        limit = engine.settings.ctx
        inputs = [
            await _cut(here, target, text, limit) if len(text.encode()) > limit - MARKS else text
            for text in texts
        ]
    return await vectors_of(here, target, inputs)


async def _cut(here: State, target: Target, text: str, limit: int) -> str | list[int]:
    """A text, or the first tokens of one that is too long, its marks included."""
    body = {"content": text, "add_special": True}
    tokens: list[int] = (await here.engines.request(target, "/tokenize", body, embedding=True))["tokens"]
    return text if len(tokens) <= limit else tokens[:limit]


# All else -----------------------------------------------------------------------------------------


@router.api_route(
    "/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"], include_in_schema=False
)
def everything_else(rest: str, request: Request) -> Response:
    """Refuse what Ollama does and we do not."""
    first = rest.split("/")[0]
    if first in READ_ONLY:
        why = "models are changed here with the `nightschool` command: pull, adapters, models"
        return refused(ApiError(405, f"/api/{first} is not offered: {why}."))
    if rest in KNOWN:
        return refused(ApiError(405, f"/api/{rest} does not take {request.method}."))
    return refused(ApiError(404, "There is no such thing in this part of Ollama's API."))
