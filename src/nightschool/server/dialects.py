"""/v1/responses (OpenAI's newer API) and /v1/messages (Anthropic's): llama.cpp's own, handed on.

What OpenAI's clients miss in the former is filled in (responses). What is asked is reduced to what is known
here before it goes on: text and calls, no images, no addresses. Nothing is kept between requests.
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from nightschool.engine import CTX_LIMIT
from nightschool.server.chat_shapes import Asked, Format, Number, Schema, Stop, Text
from nightschool.server.chats import talking
from nightschool.server.facts import facts
from nightschool.server.models import Target, resolve
from nightschool.server.problems import ApiError
from nightschool.server.relay import Answer, relay
from nightschool.server.responses import Completing
from nightschool.server.state import Here

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
MAX_ITEMS = 4096
TEXTS = ("text", "input_text", "output_text", "refusal", "summary_text")
NAME = r"^[A-Za-z0-9_.-]{1,64}$"

router = APIRouter(tags=["chat"])


class Part(BaseModel):
    """A piece of content in either dialect."""

    type: str
    text: Text | None = None
    refusal: Text | None = None
    # of Anthropic's calls and their results
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: Text | list["Part"] | None = None


def text_of(content: str | list[Part] | None) -> str:
    """Content as one text. Raises ApiError for images, sound and files."""
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type not in TEXTS:
            raise ApiError(400, f"A part of type {part.type!r} cannot be read: text only.")
    return "\n".join(part.text or part.refusal or "" for part in content)


def answering(name: str | None, default: str) -> Target:
    """What answers; memory is for chats alone."""
    target = talking(resolve(name or default))
    if target.memory:
        raise ApiError(400, "Memory works in /v1/chat/completions.", param="model")
    return target


def check_tools(target: Target, tools: Any) -> None:
    """Raise ApiError where the base's template would leave tools out without a word."""
    if tools and not facts(target.base).knows_tools:
        raise ApiError(
            400, f"{target.base.name!r} knows no tools here: /v1/chat/completions has them.", param="tools"
        )


# OpenAI's responses -------------------------------------------------------------------------------


class Item(BaseModel):
    """A turn, a call that was made, or what came of one."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["user", "assistant", "system", "developer"] = "user"
    content: Text | list[Part] | None = None
    call_id: str = ""
    name: str = ""
    arguments: Text = "{}"
    output: Text | list[Part] = ""

    def for_engine(self) -> dict[str, Any]:
        """The item as llama.cpp reads it."""
        if self.type == "function_call":
            return self.model_dump(include={"type", "call_id", "name", "arguments"})
        if self.type == "function_call_output":
            return {"type": self.type, "call_id": self.call_id, "output": text_of(self.output)}
        role = "system" if self.role == "developer" else self.role
        kind = "output_text" if role == "assistant" else "input_text"
        return {
            "type": "message",
            "role": role,
            "content": [{"type": kind, "text": text_of(self.content)}],
        }


class ResponsesTool(BaseModel):
    """A function; OpenAI's own tools (search, files, computers) are not here."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=NAME)]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponsesFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponsesText(BaseModel):
    format: ResponsesFormat | None = None
    verbosity: str | None = None


class ResponsesRequest(Asked):
    """A question in OpenAI's newer form."""

    model: str | None = None
    input: Text | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=10)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    stream: bool | None = None
    tools: Annotated[list[ResponsesTool], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    text: ResponsesText | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None

    def grammar(self) -> str | None:
        """What holds the answer to a format, if one was asked for."""
        wanted = self.text.format if self.text else None
        if wanted is None:
            return None
        schema = None
        if wanted.schema_ is not None:
            schema = Schema.model_validate({"schema": wanted.schema_, "strict": wanted.strict})
        return Format(type=wanted.type, json_schema=schema).grammar()

    def again(self, name: str) -> dict[str, Any]:
        """What the response says again of the request; nothing of it is stored."""
        format = (self.text and self.text.format) or ResponsesFormat()
        asked = self.model_dump(include={"instructions", "max_output_tokens", "temperature", "top_p"})
        return asked | {
            "model": name,
            "error": None,
            "incomplete_details": None,
            "metadata": {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "text": {"format": format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": self.tool_choice or "auto",
            "tools": [tool.model_dump() for tool in self.tools or []],
            "truncation": "disabled",
        }


@router.post("/v1/responses")
async def create_response(request: ResponsesRequest, here: Here) -> Answer:
    """Answer in OpenAI's newer form; every request stands alone (no `previous_response_id`)."""
    target = answering(request.model, here.settings.model)
    body: dict[str, Any] = request.model_dump(
        include={"max_output_tokens", "temperature", "top_p", "stream", "instructions"}, exclude_none=True
    )
    body["input"] = _read(request.input)
    if grammar := request.grammar():
        body["grammar"] = grammar
    if request.tools and request.tool_choice != "none":
        check_tools(target, request.tools)
        body["tools"] = [tool.model_dump(exclude_none=True) for tool in request.tools]
    body["chat_template_kwargs"] = {"enable_thinking": bool((request.reasoning or {}).get("effort"))}
    context = here.settings.ctx or min(facts(target.base).context or CTX_LIMIT, CTX_LIMIT)
    completing = Completing(request.again(target.name), context=context)
    return relay(here.engines, target, RESPONSES, body, rewriting=completing)


def _read(given: str | list[Item]) -> str | list[dict[str, Any]]:
    """All but earlier thoughts, which are no part of a prompt."""
    if isinstance(given, str):
        return given
    return [item.for_engine() for item in given if item.type != "reasoning"]


# Anthropic's messages -----------------------------------------------------------------------------


class Turn(BaseModel):
    role: Literal["user", "assistant"]
    content: Text | list[Part]

    def for_engine(self) -> dict[str, Any]:
        """The turn as llama.cpp reads it. Raises ApiError for images and files."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        parts = [_block(part) for part in self.content if part.type not in ("thinking", "redacted_thinking")]
        return {"role": self.role, "content": parts}


def _block(part: Part) -> dict[str, Any]:
    if part.type == "tool_use":
        return {"type": part.type, "id": part.id or "", "name": part.name or "", "input": part.input or {}}
    if part.type == "tool_result":
        return {"type": part.type, "tool_use_id": part.tool_use_id or "", "content": text_of(part.content)}
    return {"type": "text", "text": text_of([part])}


class MessagesTool(BaseModel):
    name: Annotated[str, Field(pattern=NAME)]
    description: Text | None = None
    input_schema: dict[str, Any] = {}


class MessagesToolChoice(BaseModel):
    type: Literal["auto", "none"]


class CountRequest(Asked):
    """A conversation in Anthropic's form."""

    model: str | None = None
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_ITEMS)]
    system: Text | list[Part] | None = None
    tools: Annotated[list[MessagesTool], Field(max_length=128)] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: dict[str, Any] | None = None

    def for_engine(self, target: Target) -> dict[str, Any]:
        """The conversation as llama.cpp reads it."""
        body: dict[str, Any] = {"messages": [turn.for_engine() for turn in self.messages]}
        if self.system:
            body["system"] = text_of(self.system)
        if self.tools and not (self.tool_choice and self.tool_choice.type == "none"):
            check_tools(target, self.tools)
            body["tools"] = [tool.model_dump(exclude_none=True) for tool in self.tools]
        thinks = (self.thinking or {}).get("type") == "enabled"
        body["chat_template_kwargs"] = {"enable_thinking": thinks}
        return body


class MessagesRequest(CountRequest):
    """A conversation to be answered."""

    max_tokens: Annotated[int, Field(ge=1, lt=2**31)]
    stop_sequences: Annotated[list[Stop], Field(max_length=16)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=10)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    stream: bool | None = None


@router.post("/v1/messages")
async def create_message(request: MessagesRequest, here: Here) -> Answer:
    """Answer in Anthropic's form."""
    target = answering(request.model, here.settings.model)
    fields = {"max_tokens", "stop_sequences", "temperature", "top_p", "top_k", "stream"}
    body = request.for_engine(target) | request.model_dump(include=fields, exclude_none=True)
    return relay(here.engines, target, MESSAGES, body)


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: CountRequest, here: Here) -> Answer:
    """Count the tokens of a conversation."""
    target = answering(request.model, here.settings.model)
    return relay(here.engines, target, f"{MESSAGES}/count_tokens", request.for_engine(target))
