"""llama.cpp behind one class: tokens, chat templates, answers.

It runs in a child process and is spoken to over loopback HTTP, so a crash in C++ never takes the program
down: a dead engine is started again by the next request. What else is handled here, each of it seen to go
wrong:

- llama.cpp may answer from the cache of another adapter. Every request names every adapter, with 0 for
  those that do not take part, and the cache that outlives a slot is off.
- An adapter cannot be added to a running llama.cpp. A second one starts first, then requests go to it, and
  the old one ends when its last answer is complete.
- A file is checked by `gguf` before C++ reads it.
- Grammars made from a JSON schema by llama.cpp itself fail with SentencePiece vocabularies; ours do not
  (grammar).

NIGHTSCHOOL_ENGINE may name another llama-server binary, or the URL of one that runs already.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack

import httpx
import psutil

from nightschool._engine_process import EngineProcess, Launch, connect, start
from nightschool.errors import ContextFull, EngineError, FileFormatError, NotFound
from nightschool.gguf import GGUFFile, open_gguf
from nightschool.grammar import schema_to_grammar

CTX_LIMIT = 4096  # tokens; what a model may allow can take more memory than it is worth
MAX_TOKENS = 512
# A token no vocabulary has: it separates texts that are tokenised in one request.
SEPARATOR = -1
BATCH_TEXTS = 256
BATCH_CHARACTERS = 200_000

Result = TypeVar("Result")


@dataclass(frozen=True)
class EngineSettings:
    """How llama.cpp runs; 0 means a choice made from the model or the machine."""

    ctx: int = 0  # tokens for each slot; 0: what the model was trained for, at most CTX_LIMIT
    slots: int = 1  # requests answered side by side
    threads: int = 0  # 0: the physical cores this process may use
    gpu_layers: int = 0
    embedding: bool = False  # vectors instead of answers
    thinking: bool = False  # let models that can think aloud do so before they answer


class Sampling(TypedDict, total=False):
    """What a request may say about how to answer; left out: llama.cpp's own choice."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    max_tokens: int
    seed: int
    stop: list[str]
    json_schema: Mapping[str, Any]  # the answer will be JSON of this form
    grammar: str  # or of this form, in GBNF
    n_probs: int  # log-probabilities of so many candidates for each token; `complete` only
    ignore_eos: bool
    cache_prompt: bool


class Engine:
    """A base and its adapters, ready to answer; safe to use from several threads.

    `stack` in its methods maps names of loaded adapters to scales; those not named do not take part.
    Raises NotFound, FileFormatError or UnsupportedModel for a bad file, EngineError for all else.
    """

    def __init__(
        self,
        base: Path,
        *,
        adapters: Mapping[str, Path] | None = None,
        settings: EngineSettings | None = None,
        **changes: Any,
    ) -> None:
        """`changes` are fields of EngineSettings, for those who need only one or two."""
        self.base = base
        self._model = open_gguf(base)
        self.settings = _settled(replace(settings or EngineSettings(), **changes), self._model)
        self._adapters = dict(adapters or {})
        for path in self._adapters.values():
            _check_adapter(path, self._model)
        self._state = threading.Lock()  # guards the fields below and EngineProcess.in_flight
        self._closed = False
        self._draining: set[EngineProcess] = set()  # replaced, with an answer still under way
        self._starting = threading.Lock()  # held while a process starts: one at a time
        self._process = self._launch(self._adapters)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End llama.cpp; answers still under way break."""
        with self._starting:
            with self._state:
                self._closed = True
                processes = [self._process, *self._draining]
            for process in processes:
                process.stop()

    # Text ---------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids. `add_special` adds the model's marks (BOS), `parse_special` reads marks in the text."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        tokens: list[int] = self.request("/tokenize", body)["tokens"]
        return tokens

    def tokenize_many(
        self, texts: Iterable[str], *, add_special: bool = False, parse_special: bool = True
    ) -> list[list[int]]:
        """`tokenize` for each text, some hundred in each request: tens of thousands take about a second."""
        found = [
            tokens
            for batch in _batches(texts)
            for tokens in self._tokenize_batch(batch, parse_special=parse_special)
        ]
        before, after = self._specials if add_special else ([], [])
        return [before + tokens + after for tokens in found]

    def _tokenize_batch(self, texts: list[str], *, parse_special: bool) -> list[list[int]]:
        content = [part for text in texts for part in (SEPARATOR, text)]
        body = {"content": content, "add_special": False, "parse_special": parse_special}
        found: list[list[int]] = []
        for token in self.request("/tokenize", body)["tokens"]:
            if token == SEPARATOR:
                found.append([])
            else:
                found[-1].append(token)
        assert len(found) == len(texts)
        return found

    @cached_property
    def _specials(self) -> tuple[list[int], list[int]]:
        """What `add_special` puts before and after a text."""
        bare, whole = self.tokenize("a"), self.tokenize("a", add_special=True)
        at = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        return whole[:at], whole[at + len(bare) :]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return str(self.request("/detokenize", {"tokens": list(tokens)})["content"])

    def apply_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The conversation as the model reads it, less a BOS that `tokenize(add_special=True)` adds."""
        body = {
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "chat_template_kwargs": self._template_kwargs(),
        }
        return str(self.request("/apply-template", body)["prompt"])

    def _template_kwargs(self) -> dict[str, Any]:
        return {"enable_thinking": self.settings.thinking}

    # Answers ------------------------------------------------------------------------------------

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stack: Mapping[str, float] | None = None,
        **sampling: Unpack[Sampling],
    ) -> str:
        """The answer to a conversation, whole."""
        body = self._chat_body(messages, sampling)
        choice = self.request("/v1/chat/completions", body, stack=stack or {})["choices"][0]
        return str(choice["message"].get("content") or "")

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stack: Mapping[str, float] | None = None,
        **sampling: Unpack[Sampling],
    ) -> Iterator[str]:
        """The answer piece by piece; closing the iterator stops llama.cpp too."""
        body = self._chat_body(messages, sampling)
        for event in self.stream("/v1/chat/completions", body, stack=stack or {}):
            for choice in event.get("choices", []):
                if text := choice["delta"].get("content"):
                    yield text

    def complete(
        self,
        prompt: str | Sequence[int],
        *,
        stack: Mapping[str, float] | None = None,
        **sampling: Unpack[Sampling],
    ) -> dict[str, Any]:
        """Go on with a text or with token ids; llama-server's body (content, tokens, probabilities)."""
        body = _sampling_body(sampling, max_tokens="n_predict")
        body |= {"prompt": prompt if isinstance(prompt, str) else list(prompt), "return_tokens": True}
        return self.request("/completion", body, stack=stack or {})

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector for each text, of length one; only with `embedding=True`."""
        data = self.request("/v1/embeddings", {"input": list(texts)})["data"]
        return [entry["embedding"] for entry in sorted(data, key=lambda entry: entry["index"])]

    def _chat_body(self, messages: Sequence[Mapping[str, Any]], sampling: Sampling) -> dict[str, Any]:
        body = _sampling_body(sampling, max_tokens="max_tokens")
        return body | {"messages": list(messages), "chat_template_kwargs": self._template_kwargs()}

    # Requests as they are -----------------------------------------------------------------------

    def request(
        self, path: str, body: Mapping[str, Any], *, stack: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        """Post to llama.cpp and return its answer; asked once more when the engine dies meanwhile."""

        def post(process: EngineProcess) -> dict[str, Any]:
            response = process.client.post(path, json=_with_stack(body, stack, process))
            return _answer(response)

        return self._on_process(post)

    def stream(
        self, path: str, body: Mapping[str, Any], *, stack: Mapping[str, float] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The server-sent events of an answer. One that breaks half-way raises EngineError."""

        def begin(process: EngineProcess) -> tuple[EngineProcess, httpx.Response]:
            whole = _with_stack({**body, "stream": True}, stack, process)
            request = process.client.build_request("POST", path, json=whole)
            response = process.client.send(request, stream=True)
            if response.is_error:
                response.read()
                _answer(response)
            self._hold(process)
            return process, response

        process, response = self._on_process(begin)
        try:
            yield from _events(response.iter_bytes())
        except httpx.TransportError as error:
            raise _broken(process) from error
        finally:
            response.close()
            self.release(process)

    def health(self) -> bool:
        """Whether llama.cpp answers right now; starts nothing."""
        process = self._process
        try:
            return process.is_alive() and process.client.get("/health", timeout=5).is_success
        except (httpx.HTTPError, RuntimeError):  # RuntimeError: closed a moment ago
            return False

    # Adapters -----------------------------------------------------------------------------------

    @property
    def adapters(self) -> dict[str, Path]:
        """The loaded adapters by name."""
        return dict(self._adapters)

    def add_adapter(self, name: str, path: Path) -> None:
        """Load one more adapter, or a new file under an old name; no answer under way is disturbed."""
        _check_adapter(path, self._model)
        self._change(lambda adapters: {**adapters, name: path})

    def remove_adapter(self, name: str) -> None:
        """Unload an adapter; answers under way that use it are finished first."""
        self._change(lambda adapters: {key: path for key, path in adapters.items() if key != name})

    def set_adapters(self, adapters: Mapping[str, Path]) -> None:
        """Load exactly these adapters, each from its file as it is now; no answer under way is disturbed."""
        for path in adapters.values():
            _check_adapter(path, self._model)
        self._change(lambda _: dict(adapters))

    def _change(self, change: Callable[[dict[str, Path]], dict[str, Path]]) -> None:
        with self._starting:
            self._check_open()
            adapters = change(self._adapters)
            process = self._launch(adapters)
            self._adapters = adapters
            self._switch(process)

    # The process --------------------------------------------------------------------------------

    def _launch(self, adapters: Mapping[str, Path]) -> EngineProcess:
        engine = os.environ.get("NIGHTSCHOOL_ENGINE", "")
        if engine.startswith(("http://", "https://")):
            if adapters:
                raise EngineError(
                    "NIGHTSCHOOL_ENGINE is the address of a server that runs already, so no adapter can be "
                    "loaded into it. Unset it, or let it name a llama-server program."
                )
            return connect(engine, vocabulary=len(self._model.metadata.get("tokenizer.ggml.tokens", ())))
        if engine and not shutil.which(engine):
            raise EngineError(f"NIGHTSCHOOL_ENGINE names {engine!r}, which is not a program on this machine.")
        settings = self.settings
        launch = Launch(
            model=str(self.base.resolve()),
            adapters=tuple(str(path.resolve()) for path in adapters.values()),
            ctx=settings.ctx,
            slots=settings.slots,
            threads=settings.threads,
            gpu_layers=settings.gpu_layers,
            pooling=self._pooling(),
            binary=shutil.which(engine) or "" if engine else "",
        )
        return start(launch, names=tuple(adapters))

    def _pooling(self) -> str:
        """A model made for vectors says how to take them; of others we take the mean over the tokens."""
        if not self.settings.embedding:
            return ""
        architecture = self._model.metadata.get("general.architecture")
        return "model" if f"{architecture}.pooling_type" in self._model.metadata else "mean"

    def _on_process(self, work: Callable[[EngineProcess], Result]) -> Result:
        """Do it on a living process; once more when the connection breaks."""
        for last_try in (False, True):
            process = self.borrow_started()
            try:
                return work(process)
            except httpx.TimeoutException as error:
                raise EngineError("The engine does not answer. Try again, or start anew.") from error
            except httpx.TransportError as error:
                process.has_died(within_s=1)
                if last_try or self._closed:
                    raise _broken(process) from error
            finally:
                self.release(process)
        raise AssertionError

    def borrow(self) -> EngineProcess | None:
        """A living process that will not be stopped before `release`; None where one must be started."""
        with self._state:
            self._check_open()
            if not self._process.is_alive():
                return None
            self._process.in_flight += 1
            return self._process

    def borrow_started(self) -> EngineProcess:
        """`borrow`, but a dead process is started anew, which takes as long as loading the model does."""
        while True:
            dead = self._process
            if process := self.borrow():
                return process
            self._revive(dead)

    def is_replaced(self, process: EngineProcess) -> bool:
        """Whether a borrowed process ends with its last answer: then `release` may wait for its end."""
        return process in self._draining

    def _hold(self, process: EngineProcess) -> None:
        with self._state:
            process.in_flight += 1

    def release(self, process: EngineProcess) -> None:
        """Give back what was borrowed; one that was replaced meanwhile ends with its last answer."""
        with self._state:
            process.in_flight -= 1
            done = process in self._draining and process.in_flight == 0
            if done:
                self._draining.remove(process)
        if done:
            process.stop()

    def _revive(self, dead: EngineProcess) -> None:
        with self._starting:
            self._check_open()
            if self._process is dead:
                self._switch(self._launch(self._adapters))

    def _switch(self, process: EngineProcess) -> None:
        """From now on requests go to `process`; the old one ends with its last answer."""
        with self._state:
            old, self._process = self._process, process
            idle = old.in_flight == 0
            if not idle:
                self._draining.add(old)
        if idle:
            old.stop()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("The engine has been closed.")


# What goes in -------------------------------------------------------------------------------------


def _settled(settings: EngineSettings, model: GGUFFile) -> EngineSettings:
    """The settings with every 0 replaced by a choice."""
    trained = model.metadata.get(f"{model.metadata.get('general.architecture')}.context_length", CTX_LIMIT)
    return replace(
        settings,
        ctx=settings.ctx or min(int(trained), CTX_LIMIT),
        threads=settings.threads or _free_cores(),
    )


def _free_cores() -> int:
    physical = psutil.cpu_count(logical=False) or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return max(1, min(physical, allowed))


def _check_adapter(path: Path, model: GGUFFile) -> None:
    metadata = open_gguf(path).metadata
    if metadata.get("general.type") != "adapter":
        raise FileFormatError(f"{str(path)!r} is a GGUF file, but not an adapter.")
    ours, its = model.metadata.get("general.architecture"), metadata.get("general.architecture")
    if ours != its:
        raise FileFormatError(f"{str(path)!r} is an adapter for {its!r} models, and the base is {ours!r}.")


def _sampling_body(sampling: Sampling, *, max_tokens: str) -> dict[str, Any]:
    body: dict[str, Any] = dict(sampling)
    body[max_tokens] = body.pop("max_tokens", MAX_TOKENS)
    if schema := body.pop("json_schema", None):
        body["grammar"] = schema_to_grammar(schema)
    return body


def _with_stack(
    body: Mapping[str, Any], stack: Mapping[str, float] | None, process: EngineProcess
) -> dict[str, Any]:
    """`body` with a scale for every adapter of this process. None: a request that no adapter changes."""
    if stack is None:
        return dict(body)
    if missing := [name for name in stack if name not in process.lora]:
        raise NotFound(f"The adapter {missing[0]!r} is not loaded into the engine.")
    scales = [{"id": id, "scale": float(stack.get(name, 0.0))} for id, name in enumerate(process.lora)]
    return {**body, "lora": scales}


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == BATCH_TEXTS or size + len(text) > BATCH_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


# What comes back ----------------------------------------------------------------------------------


def _answer(response: httpx.Response) -> dict[str, Any]:
    """The JSON of a good response; EngineError with llama.cpp's reason otherwise."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    if response.is_success and isinstance(body, dict):
        return body
    raise _refusal(body.get("error", {}), status=response.status_code)


def _refusal(error: dict[str, Any], *, status: int) -> EngineError:
    if error.get("type") == "exceed_context_size_error":
        return ContextFull(
            f"This needs {error['n_prompt_tokens']:,} tokens and the engine's context holds "
            f"{error['n_ctx']:,}: shorten it, or choose a larger context."
        )
    return EngineError(f"The engine refused the request: {error.get('message', f'HTTP status {status}')}.")


def _broken(process: EngineProcess) -> EngineError:
    reason = process.last_words() if process.has_died(within_s=1) else "the connection broke"
    return EngineError(f"The engine stopped before the answer was complete ({reason}). Ask again.")


def _events(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Parse `data: {…}` lines until `[DONE]`; only \\n ends a line, since U+2028 may stand in an answer."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            field, _, value = line.rstrip(b"\r").partition(b": ")
            if value == b"[DONE]":
                return
            if field in (b"data", b"error"):
                event = json.loads(value)
                _raise_for(event, is_error=field == b"error")
                yield event
    raise httpx.RemoteProtocolError("the stream ended before its end mark")


def _raise_for(event: dict[str, Any], *, is_error: bool) -> None:
    error = event.get("error", event if is_error else None)
    if error:
        raise _refusal(error, status=500)
