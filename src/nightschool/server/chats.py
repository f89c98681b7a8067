"""/v1/chat/completions.

An answer that needs nothing of ours is llama.cpp's own, handed on as it comes (relay). Several choices,
memory, and tools that llama.cpp cannot be trusted with go through `choices`.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter

from nightschool.server import choices, citing, tools
from nightschool.server.chat_shapes import ChatRequest
from nightschool.server.choices import Order
from nightschool.server.facts import facts
from nightschool.server.models import Target, resolve
from nightschool.server.problems import ApiError
from nightschool.server.relay import DONE, Answer, Out, Work, relay
from nightschool.server.state import Here, State

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions")
async def create_chat_completion(request: ChatRequest, here: Here) -> Answer:
    """Answer a conversation, whole or as a stream.

    `"nightschool": {"memory": true}`, or a model's name that ends in `:memory`, looks the question up in what
    is remembered first; the message's annotations then say where the answer is from.
    """
    target = talking(resolve(request.model or here.settings.model))
    body = request.for_engine()
    if target.memory or (request.nightschool and request.nightschool.memory):
        return Answer(_from_memory(here, target, request, body))
    offered = tools.offered(request)
    if offered and facts(target.base).knows_tools and not tools.is_required(request):
        body |= tools.native(offered, parallel=request.parallel_tool_calls)
    elif tools.is_required(request) or (offered and facts(target.base).reads):
        body = tools.described(body, offered, required=tools.is_required(request))
        return Answer(_written(here, request, _order(target, request, body, tools.Calling)))
    if (request.n or 1) > 1 or (request.logprobs and not request.top_logprobs):
        return Answer(_written(here, request, _order(target, request, body, choices.AsItIs)))
    if request.seed is not None:
        body["seed"] = request.seed % 2**32
    if request.stream:
        options = {"include_usage": with_usage(request)}
        return relay(here.engines, target, choices.PATH, body | {"stream": True, "stream_options": options})
    return relay(here.engines, target, choices.PATH, body)


def talking(target: Target) -> Target:
    """The same target. Raises ApiError where its base makes vectors and no text."""
    if facts(target.base).is_embedder:
        raise ApiError(400, f"{target.base.name!r} makes vectors: use it with /v1/embeddings.", param="model")
    return target


def with_usage(request: ChatRequest) -> bool:
    return bool(request.stream_options and request.stream_options.include_usage)


def _order(target: Target, request: ChatRequest, body: Mapping[str, Any], rewriter: Any) -> Order:
    bare = bool(request.logprobs and not request.top_logprobs)
    if bare:  # llama.cpp gives none unless asked for candidates
        body = {**body, "top_logprobs": 1}
    return Order(target, body, count=request.n or 1, seed=request.seed, rewriter=rewriter, bare_logprobs=bare)


def _written(here: State, request: ChatRequest, order: Order) -> Work:
    """Answers that are rewritten on their way."""

    async def work(out: Out) -> None:
        if not request.stream:
            await out.json(await choices.whole(here.engines, order))
            return
        await choices.stream(here.engines, order, out.event, with_usage=with_usage(request))
        await _finish(out)

    return work


async def _finish(out: Out) -> None:
    await out.write(DONE)
    await out.end()


def _from_memory(here: State, target: Target, request: ChatRequest, body: dict[str, Any]) -> Work:
    """An answer with what is remembered before the model, or, where that is too small, a quotation."""
    if request.tools:
        raise ApiError(400, "Memory and tools do not go together: leave one out.", param="tools")
    if "grammar" in body and citing.needs_quoting(target):
        raise ApiError(
            400,
            f"{target.base.name!r} quotes notes word for word, in no other form: leave out memory or the"
            " response_format.",
            param="response_format",
        )

    async def work(out: Out) -> None:
        if citing.needs_quoting(target):
            found = await citing.quotation(here, target, body["messages"])
            if found is not None:
                await _speak(out, request, target, found)
                return
            order = _order(target, request, body, choices.AsItIs)
        else:
            grounded = await citing.grounded(here, target, body["messages"])
            with_notes = body | {"messages": grounded.messages}
            order = _order(target, request, with_notes, lambda: citing.Citing(grounded.citations))
        await _written(here, request, order)(out)

    return work


async def _speak(out: Out, request: ChatRequest, target: Target, found: dict[str, Any]) -> None:
    fields = {"annotations": found["annotations"]}
    body = choices.spoken(target, found["text"], fields=fields, count=request.n or 1)
    if not request.stream:
        await out.json(body)
        return
    await choices.emit_spoken(body, out.event, with_usage=with_usage(request))
    await _finish(out)
