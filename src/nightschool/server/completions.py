"""/v1/completions, OpenAI's older schema: a text goes on.

With `echo` and `logprobs` it says how probable the prompt's own tokens are, which llama.cpp leaves out
without a word and evaluation programs live on. Those numbers come from the forward pass that training uses
(scores).
"""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from nightschool.gguf import open_gguf
from nightschool.hub import Base
from nightschool.pieces import Pieces, offsets, shown
from nightschool.server.chat_shapes import MAX_CHOICES, Sampling, StreamOptions, Text
from nightschool.server.chats import talking
from nightschool.server.choices import Emit, Json, new_id, together
from nightschool.server.facts import facts
from nightschool.server.models import Target, resolve
from nightschool.server.problems import ApiError
from nightschool.server.relay import DONE, Answer, Out
from nightschool.server.scores import Candidates
from nightschool.server.state import Here, State

PATH = "/v1/completions"
MAX_PROMPTS = 256
MAX_SCORED_TOKENS = 1 << 18
TOKENS = 16  # OpenAI's default

Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=1 << 18)]
Prompt = str | list[int]

router = APIRouter(tags=["chat"])


class CompletionRequest(Sampling):
    """A text, or several, to go on with; token ids are taken as they are."""

    model: str | None = None
    prompt: Text | Tokens | Annotated[list[Text] | list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    suffix: Text | None = Field(None, description="Not supported: leave empty")

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [each for each in self.prompt if isinstance(each, str | list)]

    @property
    def limit(self) -> int:
        return TOKENS if self.max_tokens is None else self.max_tokens


@dataclass(frozen=True)
class Read:
    """A prompt as it was read: its text, its tokens less what the model puts before every text."""

    text: str
    tokens: list[int]
    head: list[int] = field(default_factory=list)


@dataclass
class Logprobs:
    """OpenAI's four lists, in the making."""

    tokens: list[bytes] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top: list[dict[str, float] | None] = field(default_factory=list)

    def add(self, piece: bytes, logprob: float | None, top: dict[str, float] | None) -> None:
        self.tokens.append(piece)
        self.token_logprobs.append(logprob)
        self.top.append(top)

    def as_json(self, starts: Sequence[int]) -> Json:
        return {
            "tokens": [shown(piece) for piece in self.tokens],
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top,
            "text_offset": list(starts),
        }


@dataclass
class Part:
    """A piece of one choice: what is echoed, or what llama.cpp went on with."""

    text: str = ""
    logprobs: Json | None = None
    finish_reason: str | None = None


@lru_cache(maxsize=4)
def pieces_of(base: Base, modified_ns: int) -> Pieces:
    """The bytes of a base's tokens, read once."""
    return Pieces(open_gguf(base.path).metadata)


@router.post("/v1/completions")
async def create_completion(request: CompletionRequest, here: Here) -> Answer:
    """Go on with texts, whole or as a stream.

    With `echo` and `logprobs` the prompt's tokens come with their exact log-probabilities, as
    lm-evaluation-harness's `local-completions` needs them; `max_tokens` may then be 0.
    """
    target = talking(resolve(request.model or here.settings.model))
    if target.memory:
        raise ApiError(400, "Memory works in /v1/chat/completions.", param="model")
    if (request.best_of or 1) > (request.n or 1):
        raise ApiError(400, "best_of cannot be larger than n here.", param="best_of")
    if request.suffix:
        raise ApiError(400, "Texts go on at their ends here: leave `suffix` away.", param="suffix")
    _check_tokens(request.prompts, facts(target.base).vocabulary)
    work = _Work(here, target, request)

    async def write(out: Out) -> None:
        if not request.stream:
            await out.json(await work.whole())
            return
        await work.stream(out.event)
        await out.write(DONE)
        await out.end()

    return Answer(write)


def _check_tokens(prompts: Sequence[Prompt], vocabulary: int) -> None:
    for prompt in prompts:
        if not isinstance(prompt, str) and max(prompt) >= vocabulary:
            raise ApiError(
                400, f"There is no token {max(prompt)}: the model has {vocabulary:,}.", param="prompt"
            )


class _Work:
    """One request, worked through."""

    def __init__(self, here: State, target: Target, request: CompletionRequest) -> None:
        self.here, self.target, self.request = here, target, request
        self.pieces = pieces_of(target.base, target.base.path.stat().st_mtime_ns)
        self.prompts = request.prompts
        self.count = request.n or 1
        self.frame = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": target.name,
        }
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

    async def whole(self) -> Json:
        """Every choice, complete."""
        heads = await self.heads()
        choices = await together([self._choice(index, heads) for index in self.indexes])
        return {**self.frame, "choices": choices, "usage": self.usage}

    async def stream(self, emit: Emit) -> None:
        """Every choice, piece by piece."""
        heads = await self.heads()
        await together([self._stream_choice(index, heads, emit) for index in self.indexes])
        if self.request.stream_options and self.request.stream_options.include_usage:
            await emit({**self.frame, "choices": [], "usage": self.usage})

    @property
    def indexes(self) -> range:
        return range(len(self.prompts) * self.count)

    async def _choice(self, index: int, heads: Sequence["Head"]) -> Json:
        parts = [part async for part in self._parts(index, heads[index // self.count])]
        logprobs: Json | None = None
        for part in parts:
            if part.logprobs is not None:
                found = part.logprobs
                logprobs = {key: logprobs[key] + found[key] for key in found} if logprobs else found
        return {
            "index": index,
            "text": "".join(part.text for part in parts),
            "logprobs": logprobs,
            "finish_reason": parts[-1].finish_reason,
        }

    async def _stream_choice(self, index: int, heads: Sequence["Head"], emit: Emit) -> None:
        async with aclosing(self._parts(index, heads[index // self.count])) as parts:
            async for part in parts:
                choice = {"index": index, "text": part.text, "logprobs": part.logprobs}
                await emit({**self.frame, "choices": [choice | {"finish_reason": part.finish_reason}]})

    async def _parts(self, index: int, head: "Head") -> AsyncGenerator[Part, None]:
        """What is echoed, then what comes after it."""
        if self.request.echo:
            yield Part(head.read.text, head.logprobs, "length" if self._is_over(head) else None)
        if head.next is not None:
            self.usage["completion_tokens"] += 1
            self.usage["total_tokens"] += 1
            yield head.next
        elif self.request.limit > 0:
            async with aclosing(self._go_on(index, len(head.read.text) if self.request.echo else 0)) as parts:
                async for part in parts:
                    yield part
        elif not self.request.echo:
            yield Part(finish_reason="length")

    def _is_over(self, head: "Head") -> bool:
        return head.next is None and self.request.limit == 0

    # The prompt ----------------------------------------------------------------------------------

    async def heads(self) -> list["Head"]:
        """What is known of each prompt before llama.cpp goes on with it."""
        request = self.request
        if not request.echo and request.limit > 0:
            return [Head(Read("", [])) for _ in self.prompts]
        read = await together([self._read(prompt) for prompt in self.prompts])
        self._use(sum(len(each.tokens) for each in read))
        if not request.echo or request.logprobs is None:
            return [Head(each) for each in read]
        return await self._scored(read)

    async def _read(self, prompt: Prompt) -> Read:
        if not isinstance(prompt, str):
            said = await self.here.engines.request(self.target, "/detokenize", {"tokens": prompt})
            return Read(str(said["content"]), prompt)
        bare, full = await together([self._tokenize(prompt, special) for special in (False, True)])
        return Read(prompt, bare, full[: len(full) - len(bare)] if full[-len(bare) :] == bare else [])

    async def _tokenize(self, text: str, special: bool) -> list[int]:
        body = {"content": text, "add_special": special, "parse_special": True}
        tokens: list[int] = (await self.here.engines.request(self.target, "/tokenize", body))["tokens"]
        return tokens

    async def _scored(self, read: Sequence[Read]) -> list["Head"]:
        """Prompts with their log-probabilities, and the next token where the likeliest is wanted."""
        context = facts(self.target.base).context
        longest = max(len(each.head) + len(each.tokens) for each in read)
        if longest > context or sum(len(each.tokens) for each in read) > MAX_SCORED_TOKENS:
            raise ApiError(
                400,
                f"The longest prompt has {longest:,} tokens and the model holds {context:,}: shorten it, or"
                " send fewer at once.",
                param="prompt",
                code="context_length_exceeded",
            )
        prompts = [each.head + each.tokens for each in read]
        with self.here.engines.chatting:
            found = await self.here.scores.score(
                self.target, [each for each in prompts if each], top=max(1, self.request.logprobs or 0)
            )
        scored = iter(found)
        heads = []
        for each, prompt in zip(read, prompts, strict=True):
            heads.append(self._head(each, next(scored)) if prompt else Head(each))
        return heads

    def _head(self, read: Read, scored: Any) -> "Head":
        skip = len(read.head)
        logprobs = Logprobs()
        rows = zip(read.tokens, scored.logprobs[skip:-1], scored.top[skip:-1], strict=True)
        for token, logprob, top in rows:
            logprobs.add(self.pieces[token], logprob, self._candidates(top, token, logprob))
        head = Head(read, logprobs.as_json(offsets(logprobs.tokens, read.text)))
        if self.request.limit == 1 and self.request.temperature == 0 and self.count == 1:
            head.next = self._likeliest(scored.logprobs[-1], scored.top[-1], len(read.text))
        return head

    def _likeliest(self, logprob: float, top: Candidates, start: int) -> Part:
        token = top[0][0]
        logprobs = Logprobs()
        logprobs.add(self.pieces[token], logprob, self._candidates(top, token, logprob))
        text = self.pieces[token].decode(errors="replace")
        return Part(text, logprobs.as_json([start]), "length")

    def _candidates(
        self, top: Candidates | None, token: int, logprob: float | None
    ) -> dict[str, float] | None:
        """The likeliest tokens by their texts, with the one that is there; of equal texts the likelier."""
        if top is None or logprob is None or not self.request.logprobs:
            return None
        found: dict[str, float] = {}
        for each, value in [*top[: self.request.logprobs], (token, logprob)]:
            found.setdefault(shown(self.pieces[each]), value)
        return found

    def _use(self, tokens: int) -> None:
        self.usage["prompt_tokens"] += tokens
        self.usage["total_tokens"] += tokens

    # What comes after it -------------------------------------------------------------------------

    def _body(self, index: int) -> Json:
        request = self.request
        body = request.sampling() | {"prompt": self.prompts[index // self.count], "max_tokens": request.limit}
        if request.logprobs is not None:
            body["logprobs"] = max(1, request.logprobs)
        if request.seed is not None:
            body["seed"] = (request.seed + index % self.count) % 2**32
        return body | {"stream_options": {"include_usage": True}}

    async def _go_on(self, index: int, start: int) -> AsyncGenerator[Part, None]:
        async with aclosing(self.here.engines.events(self.target, PATH, self._body(index))) as events:
            async for event in events:
                self._count(event.get("usage"), index)
                for choice in event["choices"]:
                    logprobs = self._generated(choice.get("logprobs"), start)
                    start += len(choice["text"])
                    yield Part(choice["text"], logprobs, choice["finish_reason"])

    def _count(self, usage: Json | None, index: int) -> None:
        if usage:
            self.usage["completion_tokens"] += usage["completion_tokens"]
            self.usage["total_tokens"] += usage["completion_tokens"]
            if not self.request.echo and index % self.count == 0:
                self._use(usage["prompt_tokens"])

    def _generated(self, found: Json | None, start: int) -> Json | None:
        """llama.cpp's newer form of log-probabilities as OpenAI's older one."""
        if not found or self.request.logprobs is None:
            return None
        logprobs = Logprobs()
        for each in found["content"]:
            top = [(other["id"], other["logprob"]) for other in each["top_logprobs"]]
            chosen = self._candidates(top, each["id"], each["logprob"])
            logprobs.add(self.pieces[each["id"]], each["logprob"], chosen)
        text = b"".join(logprobs.tokens).decode(errors="replace")
        return logprobs.as_json([start + at for at in offsets(logprobs.tokens, text)])


@dataclass
class Head:
    """A prompt, its log-probabilities where they were asked for, and the next token where it is known."""

    read: Read
    logprobs: Json | None = None
    next: Part | None = None
