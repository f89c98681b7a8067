"""What a request for an answer may say: /v1/chat/completions and /v1/completions.

Three kinds of fields: those that are used, those of OpenAI's that change nothing here and are taken without a
word (clients send them unasked), and all others, which are refused by name. Nothing else reaches llama.cpp.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nightschool.errors import EngineError
from nightschool.grammar import KNOWN, schema_to_grammar
from nightschool.server.problems import ApiError

MAX_MESSAGES = 4096
MAX_CHOICES = 32
MAX_STOPS = 16
# Of OpenAI's: they name accounts, bills, storage and schedules that do not exist here.
HARMLESS = frozenset(
    "user store metadata service_tier safety_identifier prompt_cache_key prompt_cache_retention prediction"
    " modalities verbosity".split()
)
ROLES = {"developer": "system"}  # OpenAI's newer name, which templates do not know

Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=8_000_000)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,7}$")]
Bias = Annotated[Number, Field(ge=-100, le=100)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class Asked(BaseModel):
    """A request: what is not named here is refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_the_harmless(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.keys() & HARMLESS:
            return {key: value for key, value in values.items() if key not in HARMLESS}
        return values


class Sampling(Asked):
    """How to choose tokens: OpenAI's fields, and four of llama.cpp's."""

    temperature: Annotated[Number, Field(ge=0, le=10)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    def sampling(self) -> dict[str, Any]:
        """For llama.cpp."""
        found = self.model_dump(include=set(Sampling.model_fields) - {"n", "seed"}, exclude_none=True)
        if self.seed is not None:
            found["seed"] = self.seed % 2**32
        return found


class StreamOptions(BaseModel):
    """What a stream ends with."""

    include_usage: bool = False


class Ours(Asked):
    """What is ours: `memory` looks things up in what is remembered."""

    memory: bool = False


class Function(BaseModel):
    """What a tool's call looks like; `parameters` is a JSON schema."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A function that the client offers to call."""

    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    name: str


class NamedTool(BaseModel):
    """The one that must be called."""

    type: Literal["function"]
    function: NamedFunction


class Schema(BaseModel):
    """A JSON schema with a name."""

    name: str = ""
    description: str | None = None
    strict: bool | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class Format(BaseModel):
    """Free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    def grammar(self) -> str | None:
        """The grammar that holds the answer to the format. Raises ApiError where it cannot be enforced."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return schema_to_grammar({"type": "object"})
        if self.json_schema is None:
            raise ApiError(400, "A json_schema format needs a json_schema.", param="response_format")
        strict = self.json_schema.strict or False
        return grammar_of(self.json_schema.schema_, param="response_format", strict=strict)


def grammar_of(schema: dict[str, Any], *, param: str, strict: bool = True) -> str:
    """A JSON schema as a grammar; unless `strict`, without what a grammar cannot enforce.

    Raises ApiError for a keyword that cannot be enforced, or what is no schema.
    """
    try:
        return schema_to_grammar(schema if strict else enforceable(schema))
    except EngineError as error:
        raise ApiError(400, str(error), param=param) from error
    except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
        raise ApiError(400, "That is no JSON schema.", param=param) from error


def enforceable(schema: Any) -> Any:
    """A schema without the keywords that a grammar cannot enforce."""
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {key: value for key, value in schema.items() if key in KNOWN}
    for key in kept.keys() & {"properties", "$defs", "definitions"}:
        kept[key] = {name: enforceable(each) for name, each in kept[key].items()}
    for key in kept.keys() & {"anyOf", "oneOf"}:
        kept[key] = [enforceable(each) for each in kept[key]]
    if "items" in kept:
        kept["items"] = enforceable(kept["items"])
    return kept


class Part(BaseModel):
    """A piece of a message. Only text is understood; nothing is ever fetched."""

    type: str
    text: Text | None = None
    refusal: Text | None = None


class CalledFunction(BaseModel):
    name: str
    arguments: Text


class Call(BaseModel):
    """A call that an earlier answer made."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    """One turn. What clients hand back of earlier answers and is no part of a prompt is left out."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[Call] | None = None
    reasoning_content: Text | None = None

    def for_template(self) -> dict[str, Any]:
        """What the chat template gets."""
        found: dict[str, Any] = {"role": ROLES.get(self.role, self.role), "content": self.text}
        if self.role == "assistant" and self.tool_calls:
            found["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.role == "assistant" and self.reasoning_content:
            found["reasoning_content"] = self.reasoning_content
        if self.role == "tool":
            found["tool_call_id"] = self.tool_call_id or ""
        return found

    @property
    def text(self) -> str:
        """The content as one text. Raises ApiError for images, sound and files."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        for part in self.content:
            if part.type not in ("text", "refusal", "input_text", "output_text"):
                raise ApiError(
                    400, f"A part of type {part.type!r} cannot be read: text only.", param="messages"
                )
        return "\n".join(part.text or part.refusal or "" for part in self.content)


class ChatRequest(Sampling):
    """A conversation to be answered."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Format | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    nightschool: Ours | None = None

    def for_engine(self) -> dict[str, Any]:
        """The request as llama.cpp takes it, but for tools and the stream."""
        body = self.sampling()
        body["messages"] = [message.for_template() for message in self.messages]
        if limit := self.max_completion_tokens or self.max_tokens:
            body["max_tokens"] = limit
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
        if self.logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        thinks = self.reasoning_effort not in (None, "none", "minimal")
        body["chat_template_kwargs"] = {"enable_thinking": thinks}
        if self.response_format and (grammar := self.response_format.grammar()):
            body["grammar"] = grammar
        return body
