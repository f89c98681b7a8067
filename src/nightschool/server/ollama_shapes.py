"""What Ollama's clients send, and the same in OpenAI's words.

Clients send many options that mean nothing here (num_gpu, mirostat, …): like Ollama itself, we pass over what
we do not know. Only what is named here reaches the model.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from nightschool.server.chat_shapes import ChatRequest, Text, Tool
from nightschool.server.problems import ApiError, validation_error

LATEST = ":latest"
FOREVER = -1  # num_predict: until the model ends by itself
EFFORTS = ("low", "medium", "high")

ModelName = Annotated[str, Field(min_length=1, max_length=512)]


class Options(BaseModel):
    """How to choose tokens."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    num_predict: int | None = None

    def for_openai(self) -> dict[str, Any]:
        """The fields of a chat request."""
        found = self.model_dump(exclude_none=True, exclude={"num_predict"})
        if found.get("stop") in ("", []):
            del found["stop"]
        if self.num_predict is not None and self.num_predict > 0:
            found["max_tokens"] = self.num_predict
        return found


class CalledFunction(BaseModel):
    name: str
    arguments: dict[str, Any] = {}

    def for_openai(self) -> dict[str, str]:
        """With its arguments as a text."""
        return {"name": self.name, "arguments": json.dumps(self.arguments)}


class Call(BaseModel):
    function: CalledFunction


class Message(BaseModel):
    """One turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text | None = None
    thinking: Text | None = None
    images: list[Any] | None = None
    tool_calls: list[Call] | None = None

    def for_openai(self) -> dict[str, Any]:
        """The same turn of a chat request. Raises ApiError for images."""
        if self.images:
            raise ApiError(400, "Images cannot be read here: text only.", param="images")
        found: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.thinking:
            found["reasoning_content"] = self.thinking
        if self.tool_calls:
            found["tool_calls"] = [
                {"id": f"call_{number}", "function": call.function.for_openai()}
                for number, call in enumerate(self.tool_calls)
            ]
        return found


class Generation(BaseModel):
    """What chats and single prompts have in common."""

    model: ModelName
    stream: bool = True
    options: Options = Options()
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    keep_alive: float | str | None = Field(None, description="Taken, and of no effect")
    logprobs: bool | None = None

    @property
    def name(self) -> str:
        """The model's name without the tag that Ollama adds."""
        return self.model.removesuffix(LATEST)

    def for_openai(self, messages: list[dict[str, Any]], *, tools: list[Tool] | None = None) -> ChatRequest:
        """The chat request that asks for the same. Raises ApiError for what it cannot say."""
        if self.logprobs:
            raise ApiError(400, "Log-probabilities are offered at /v1/chat/completions.", param="logprobs")
        body: dict[str, Any] = {"messages": messages, "tools": tools, **self.options.for_openai()}
        if self.format == "json":
            body["response_format"] = {"type": "json_object"}
        elif isinstance(self.format, dict):
            schema = {"name": "answer", "schema": self.format}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.think:
            body["reasoning_effort"] = self.think if self.think in EFFORTS else "medium"
        try:
            return ChatRequest.model_validate(body)
        except ValidationError as error:
            raise validation_error(error.errors()) from error


class Chat(Generation):
    """A conversation to be answered; none at all loads the model."""

    messages: Annotated[list[Message], Field(max_length=4096)] = []
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None


class Prompt(Generation):
    """A single prompt; an empty one loads the model."""

    prompt: Text = ""
    system: Text | None = None
    raw: bool = False
    template: Text | None = None
    suffix: Text | None = None
    images: list[Any] | None = None

    def check(self) -> None:
        """Raise ApiError for what is not done here."""
        for name, why in (
            ("template", "The model's own chat template is used; with raw: true there is none."),
            ("suffix", "Text cannot be filled in before a suffix here."),
            ("images", "Images cannot be read here: text only."),
        ):
            if getattr(self, name):
                raise ApiError(400, why, param=name)

    def messages(self) -> list[dict[str, Any]]:
        """The prompt as a conversation."""
        before = [{"role": "system", "content": self.system}] if self.system else []
        return [*before, {"role": "user", "content": self.prompt}]


class Embed(BaseModel):
    """Texts to make vectors of."""

    model: ModelName
    input: Text | Annotated[list[Text], Field(max_length=2048)]
    truncate: bool = True
    dimensions: int | None = None


class Embeddings(BaseModel):
    """One text to make a vector of: the older form."""

    model: ModelName
    prompt: Text


class Show(BaseModel):
    """Which model to describe; older clients call it `name`."""

    model: str = Field("", max_length=512)
    name: str = Field("", max_length=512)
