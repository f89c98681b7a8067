"""Tools: functions that the client offers and the model may call.

Where the base's template knows tools and the model is free to choose, llama.cpp does it all: the model writes
calls as it has learned to. Everything else is done here, for llama.cpp cannot be relied on for it: the build
we use ignores its own grammars for calls, and one form of `tool_choice` ends its process. The tools are
described in the system message, and a grammar holds the answer to one call (or, where the model is free, to
one call or a text that does not begin like one).
"""

import json
import uuid
from collections.abc import Sequence
from typing import Any

from nightschool.server.chat_shapes import ChatRequest, NamedTool, Tool, enforceable, grammar_of
from nightschool.server.choices import Ending
from nightschool.server.problems import ApiError

INSTRUCTIONS = (
    'To call a function, answer with nothing but {"name": …, "arguments": {…}}. These are the functions, each'
    " with the JSON schema of its arguments:"
)


def offered(request: ChatRequest) -> list[Tool]:
    """The tools that the answer may call. Raises ApiError for a choice that is not among them."""
    tools, choice = request.tools or [], request.tool_choice
    if choice == "none":
        return []
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    if not tools and choice not in (None, "auto"):
        raise ApiError(400, "tool_choice names no tool that is offered.", param="tool_choice")
    return tools


def is_required(request: ChatRequest) -> bool:
    """Whether the answer must be a call."""
    return request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)


def native(tools: Sequence[Tool], *, parallel: bool | None) -> dict[str, Any]:
    """For a template that knows tools: fields of the request to llama.cpp."""
    several = {} if parallel is None else {"parallel_tool_calls": parallel}
    return {"tools": [tool.model_dump(exclude_none=True) for tool in tools], **several}


def described(body: dict[str, Any], tools: Sequence[Tool], *, required: bool) -> dict[str, Any]:
    """The request with the tools in its system message and a grammar that holds it to them."""
    if "grammar" in body:
        raise ApiError(400, "Tools and a response_format do not go together.", param="response_format")
    lines = [
        json.dumps(tool.function.model_dump(include={"name", "description", "parameters"}, exclude_none=True))
        for tool in tools
    ]
    said = "\n".join([INSTRUCTIONS, *lines])
    first, *rest = body["messages"]
    if first["role"] == "system":
        messages = [{**first, "content": f"{first['content']}\n\n{said}"}, *rest]
    else:
        messages = [{"role": "system", "content": said}, *body["messages"]]
    return {**body, "messages": [_as_text(each) for each in messages], "grammar": _grammar(tools, required)}


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    """Calls and their results in words, for templates that know neither."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"The function returned: {message['content']}"}
    calls = [
        json.dumps({"name": call["function"]["name"], "arguments": call["function"]["arguments"]})
        for call in message.get("tool_calls", [])
    ]
    content = "\n".join([*filter(None, [message["content"]]), *calls])
    return {"role": message["role"], "content": content}


def _grammar(tools: Sequence[Tool], required: bool) -> str:
    calls: list[dict[str, Any]] = []
    shared: dict[str, dict[str, Any]] = {"$defs": {}, "definitions": {}}
    for tool in tools:
        wanted = tool.function.parameters or {"type": "object"}
        parameters = wanted if tool.function.strict else enforceable(wanted)
        grammar_of(parameters, param="tools")  # its references lead from its own root
        for key, found in shared.items():
            found |= parameters.get(key, {})
        properties = {"name": {"const": tool.function.name}, "arguments": parameters}
        calls.append({"type": "object", "properties": properties, "required": ["name", "arguments"]})
    grammar = grammar_of({"anyOf": calls, **shared}, param="tools")
    if required:
        return grammar
    return grammar.replace("root ::=", "root ::= [^{] text | call\ntext ::= [^\\x00]*\ncall ::=", 1)


class Calling:
    """An answer that is a call, held back until it is whole, or a text, which is not."""

    def __init__(self) -> None:
        self._held = ""
        self._is_text = False

    def piece(self, text: str) -> str:
        self._held += text
        self._is_text = self._is_text or not self._held.lstrip().startswith("{")
        if not self._is_text or not self._held.strip():
            return ""
        said, self._held = self._held, ""
        return said

    def end(self) -> Ending:
        try:
            call = json.loads(self._held)
            function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
        except (ValueError, LookupError, TypeError):  # cut off by max_tokens
            return Ending(text=self._held)
        called = {"index": 0, "id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
        return Ending(fields={"content": None, "tool_calls": [called]}, finish_reason="tool_calls")
