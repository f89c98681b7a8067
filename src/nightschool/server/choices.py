"""Answers that are more than handed on: several to one request, or rewritten on their way.

Each choice is a request of its own to llama.cpp, so that there may be more of them than it has slots, each
has a seed of its own that can be repeated, and the usage is that of all.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from nightschool.server.engines import Engines
from nightschool.server.models import Target

PATH = "/v1/chat/completions"
Json = dict[str, Any]
Emit = Callable[[Json], Awaitable[None]]
Result = TypeVar("Result")


class Rewriter(Protocol):
    """Changes one answer while it is being written."""

    def piece(self, text: str) -> str:
        """What can be said now that `text` has come; what is held back comes later or never."""
        ...

    def end(self) -> "Ending":
        """What is left to say when the answer is complete."""
        ...


@dataclass
class Ending:
    """The last text of an answer, fields for its message, and why it ended where that changes."""

    text: str = ""
    fields: Json = field(default_factory=dict)
    finish_reason: str | None = None


class AsItIs:
    """No change at all."""

    def piece(self, text: str) -> str:
        return text

    def end(self) -> Ending:
        return Ending()


@dataclass(frozen=True)
class Order:
    """What is asked of llama.cpp, how often, and what becomes of each answer."""

    target: Target
    body: Mapping[str, Any]
    count: int = 1
    seed: int | None = None
    rewriter: Callable[[], Rewriter] = AsItIs
    bare_logprobs: bool = False  # no candidates beside the chosen token

    def body_of(self, index: int) -> Json:
        """The request for one choice."""
        seed = {} if self.seed is None else {"seed": (self.seed + index) % 2**32}
        return {**self.body, **seed}


async def together(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All of it side by side; the first failure ends the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def new_id(kind: str) -> str:
    """An identity as OpenAI's look: chatcmpl-…"""
    return f"{kind}-{uuid.uuid4().hex}"


# Whole --------------------------------------------------------------------------------------------


async def whole(engines: Engines, order: Order) -> Json:
    """A chat.completion with every choice."""
    found = await together(
        [engines.request(order.target, PATH, order.body_of(index)) for index in range(order.count)]
    )
    choices = [_rewritten(body["choices"][0], index, order) for index, body in enumerate(found)]
    return {**found[0], "model": order.target.name, "choices": choices, "usage": add_usage(found)}


def _rewritten(choice: Json, index: int, order: Order) -> Json:
    rewriter = order.rewriter()
    message = choice["message"]
    said = rewriter.piece(message.get("content") or "")
    ending = rewriter.end()
    content = said + ending.text
    for call in ending.fields.get("tool_calls", []):
        del call["index"]  # it has one in streams only
    return {
        **choice,
        "index": index,
        "message": {**message, "content": content or message.get("content"), **ending.fields},
        "finish_reason": ending.finish_reason or choice["finish_reason"],
        **_logprobs(choice, order),
    }


def _logprobs(choice: Json, order: Order) -> Json:
    found = choice.get("logprobs")
    if not found or not order.bare_logprobs:
        return {"logprobs": found}
    return {"logprobs": {**found, "content": [{**each, "top_logprobs": []} for each in found["content"]]}}


def add_usage(bodies: Sequence[Json]) -> Json:
    """What several requests with the same prompt used together: the prompt counts once, as OpenAI has it."""
    prompt = bodies[0]["usage"]["prompt_tokens"]
    completion = sum(body["usage"]["completion_tokens"] for body in bodies)
    total = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {**bodies[0]["usage"], **total}


# As a stream --------------------------------------------------------------------------------------


async def stream(engines: Engines, order: Order, emit: Emit, *, with_usage: bool) -> None:
    """The chat.completion.chunks of every choice, as they come."""
    frame = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": order.target.name,
    }
    usages = await together([_stream_one(engines, order, index, frame, emit) for index in range(order.count)])
    if with_usage:
        await emit({**frame, "choices": [], "usage": add_usage(usages)})


async def _stream_one(engines: Engines, order: Order, index: int, frame: Json, emit: Emit) -> Json:
    """One choice's chunks; its usage."""
    rewriter = order.rewriter()
    body = order.body_of(index) | {"stream_options": {"include_usage": True}}
    last: Json = {}
    async with aclosing(engines.events(order.target, PATH, body)) as events:
        async for event in events:
            if event.get("usage"):
                last = event
            for choice in event["choices"]:
                for delta, reason in _deltas(choice, rewriter):
                    piece = {"index": index, "delta": delta, "finish_reason": reason}
                    await emit({**frame, "choices": [piece | _logprobs(choice, order)]})
    return last


def _deltas(choice: Json, rewriter: Rewriter) -> list[tuple[Json, str | None]]:
    """What is sent on for one of llama.cpp's: each with the reason for its end."""
    delta, reason = dict(choice["delta"]), choice["finish_reason"]
    came = delta.get("content")
    if isinstance(came, str):
        delta["content"] = rewriter.piece(came)
    if reason is None:
        return [(delta, None)] if delta.get("content") != "" or choice.get("logprobs") else []
    ending = rewriter.end()
    final: list[tuple[Json, str | None]] = [({}, ending.finish_reason or reason)]
    rest = delta | ({"content": ending.text} if ending.text else {}) | ending.fields
    return [(rest, None), *final] if rest else final


# Answers that no model is asked for ----------------------------------------------------------------


def spoken(target: Target, text: str, *, fields: Mapping[str, Any], count: int = 1) -> Json:
    """A chat.completion that says `text`, as often as choices were asked for."""
    choice = {
        "message": {"role": "assistant", "content": text, **fields},
        "finish_reason": "stop",
        "logprobs": None,
    }
    return {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": target.name,
        "choices": [{"index": index, **choice} for index in range(count)],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


async def emit_spoken(body: Json, emit: Emit, *, with_usage: bool) -> None:
    """The same as chunks."""
    frame = {key: body[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    for choice in body["choices"]:
        for delta, reason in ((choice["message"], None), ({}, "stop")):
            piece = {"index": choice["index"], "delta": delta, "finish_reason": reason}
            await emit({**frame, "choices": [piece]})
    if with_usage:
        await emit({**frame, "choices": [], "usage": body["usage"]})
