"""The engines that are alive: one for each base that is talked to, one for vectors.

A request says what should answer it (models.Target) and gets a llama.cpp with the adapters it names loaded,
whatever is loaded now: a new adapter, or a new version of one, starts a second process first, requests move
over, and the old one ends with its last answer. An engine that has died is started anew.

`chatting` says whether anybody is waiting for an answer: training holds while somebody is.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nightschool._engine_process import EngineProcess
from nightschool.adapters import check_fits, find_adapter
from nightschool.engine import Engine, EngineSettings
from nightschool.errors import EngineError, NotFound
from nightschool.gguf import open_gguf
from nightschool.hub import Base
from nightschool.server.models import Target
from nightschool.server.problems import ApiError
from nightschool.server.upstream import ConnectionBroken, Reply, Upstream
from nightschool.settings import ServeSettings

MAX_BASES = 2  # held in memory at once; the one that was not asked for longest goes
AT_ONCE = 24  # requests an engine is sent at once, the rest wait here: each holds one of its HTTP threads

Result = TypeVar("Result")
Stamp = tuple[int, int, int]  # of a file: which, how long, how old


class Chatting:
    """Whether somebody is waiting for an answer, and since when nobody is."""

    def __init__(self) -> None:
        self.count = 0
        self.ended_at = float("-inf")  # time.monotonic() of the last end
        self._listeners: list[Callable[[bool], None]] = []

    @property
    def is_active(self) -> bool:
        return self.count > 0

    def listen(self, listener: Callable[[bool], None]) -> None:
        """Be told True when the first begins and False when the last has ended; must return at once."""
        self._listeners.append(listener)

    def __enter__(self) -> None:
        self.count += 1
        if self.count == 1:
            self._tell()

    def __exit__(self, *error: object) -> None:
        self.count -= 1
        self.ended_at = time.monotonic()
        if self.count == 0:
            self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener(self.is_active)


@dataclass(frozen=True)
class Lease:
    """A llama.cpp that stays for as long as the request does, with all that a request to it needs."""

    process: EngineProcess
    upstream: Upstream

    async def post(self, path: str, body: Mapping[str, Any], scales: Mapping[str, float]) -> Reply:
        """Ask, naming every adapter; close the reply. Raises ConnectionBroken."""
        if missing := [name for name in scales if name not in self.process.lora]:
            raise NotFound(f"The adapter {missing[0]!r} has been removed.")
        lora = [{"id": id, "scale": scales.get(name, 0.0)} for id, name in enumerate(self.process.lora)]
        try:
            content = json.dumps({**body, "lora": lora}, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise ApiError(400, "The request holds a number or a nesting that is not JSON.") from error
        return await self.upstream.post(self.process.address, path, content, self.process.headers)


class Served:
    """One base's engine, and which files its adapters were loaded from."""

    def __init__(self, base: Base, settings: EngineSettings) -> None:
        self.base = base
        self.settings = settings
        self.engine: Engine | None = None
        self.loaded: dict[str, tuple[Path, Stamp]] = {}
        self.changing = asyncio.Lock()
        self.turns = asyncio.Semaphore(AT_ONCE)
        self.used_at = time.monotonic()
        self.users = 0

    def has(self, wanted: Mapping[str, tuple[Path, Stamp]]) -> bool:
        """Whether the engine runs with the wanted adapters, each as its file is now."""
        return self.engine is not None and all(self.loaded.get(name) == it for name, it in wanted.items())

    async def make_ready(self, wanted: Mapping[str, tuple[Path, Stamp]]) -> Engine:
        """Start the engine, or load into it what it lacks; one change at a time."""
        async with self.changing:
            if not self.has(wanted):
                await _to_its_end(lambda: self._change(wanted))
        assert self.engine
        return self.engine

    def _change(self, wanted: Mapping[str, tuple[Path, Stamp]]) -> None:
        model = open_gguf(self.base.path)
        for path, _ in wanted.values():
            check_fits(path, model)
        kept = {name: it for name, it in self.loaded.items() if _stamp(it[0]) == it[1]}
        loaded = {**kept, **wanted}
        paths = {name: path for name, (path, _) in loaded.items()}
        if self.engine is None:
            self.engine = Engine(self.base.path, adapters=paths, settings=self.settings)
        else:
            self.engine.set_adapters(paths)
        self.loaded = loaded

    def restart(self) -> EngineProcess:
        """A process in place of one that died, without adapters whose files are gone; blocks."""
        assert self.engine
        kept = {name: it for name, it in self.loaded.items() if _stamp(it[0]) == it[1]}
        if kept != self.loaded:
            self.engine.set_adapters({name: path for name, (path, _) in kept.items()})
            self.loaded = kept
        return self.engine.borrow_started()

    async def borrow(self) -> EngineProcess:
        assert self.engine
        process = self.engine.borrow()
        if process is None:
            async with self.changing:
                process = await _to_its_end(self.restart)
        return process

    async def give_back(self, process: EngineProcess) -> None:
        assert self.engine
        if self.engine.is_replaced(process):  # it may be the last to leave: then this waits for its end
            await asyncio.shield(asyncio.to_thread(self.engine.release, process))
        else:
            self.engine.release(process)

    async def close(self) -> None:
        async with self.changing:
            engine, self.engine, self.loaded = self.engine, None, {}
            if engine:
                await asyncio.to_thread(engine.close)


async def _to_its_end(work: Callable[[], Result]) -> Result:
    """Do it in a thread, which nobody can stop: who is cancelled waits too, or another would begin."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    finally:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])


class Engines:
    """All engines of a server, started when they are first needed."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.chatting = Chatting()
        self.deaths = 0  # connections that broke
        self._served: dict[tuple[Path, bool], Served] = {}
        self._upstream = Upstream()

    @property
    def running(self) -> int:
        """How many engines there are."""
        return sum(served.engine is not None for served in self._served.values())

    @property
    def bases(self) -> list[Base]:
        """Those that an engine runs for."""
        return [served.base for served in self._served.values() if served.engine]

    async def close(self) -> None:
        """End every engine; answers under way break."""
        for served in list(self._served.values()):
            await served.close()
        self._served.clear()
        self._upstream.close()

    @asynccontextmanager
    async def lease(self, target: Target, *, embedding: bool = False) -> AsyncIterator[Lease]:
        """A llama.cpp with the target's adapters loaded; it stays until the block ends.

        Raises NotFound, AdapterMismatch, EngineError and what else may be wrong with the files.
        """
        with self._use(target.base, embedding=embedding) as served:
            async with served.turns:
                process = await self._ready(served, target)
                try:
                    yield Lease(process, self._upstream)
                finally:
                    await served.give_back(process)

    @asynccontextmanager
    async def using(self, target: Target) -> AsyncIterator[Engine]:
        """The engine itself, the target's adapters loaded, for code that asks it by itself, in a thread."""
        with self._use(target.base, embedding=False) as served:
            yield await self._make_ready(served, _wanted(target))

    async def engine(self, target: Target, *, embedding: bool = False) -> Engine:
        """As `using`, for those who keep it; one for answers may end when other bases are talked to."""
        served = self._find(target.base, embedding=embedding)
        served.used_at = time.monotonic()
        return await self._make_ready(served, _wanted(target))

    @contextmanager
    def _use(self, base: Base, *, embedding: bool) -> Iterator[Served]:
        """Count somebody who waits for an answer, so that training holds and the engine stays."""
        served = self._find(base, embedding=embedding)
        served.users += 1
        try:
            with self.chatting:
                yield served
        finally:
            served.users -= 1
            served.used_at = time.monotonic()

    async def _make_ready(self, served: Served, wanted: Mapping[str, tuple[Path, Stamp]]) -> Engine:
        if not served.has(wanted):
            await self._make_room(served)
        return await served.make_ready(wanted)

    async def _ready(self, served: Served, target: Target) -> EngineProcess:
        wanted = _wanted(target)
        while True:
            if not served.has(wanted):
                await self._make_ready(served, wanted)
            process = await served.borrow()
            if all(name in process.lora for name in wanted):
                return process
            await served.give_back(process)

    def _find(self, base: Base, *, embedding: bool) -> Served:
        key = (base.path, embedding)
        if key not in self._served:
            settings = EngineSettings(
                ctx=self.settings.ctx,
                slots=1 if embedding else self.settings.slots,  # side by side, llama.cpp mixes vectors up
                threads=self.settings.threads,
                embedding=embedding,
            )
            self._served[key] = Served(base, settings)
        return self._served[key]

    async def _make_room(self, newcomer: Served) -> None:
        """End the engine that was not used for longest where a new one would be too many."""
        if newcomer.settings.embedding:  # there is one, and it is small
            return
        talking = [each for each in self._served.values() if each.engine and not each.settings.embedding]
        idle = sorted((each for each in talking if not each.users), key=lambda each: each.used_at)
        if newcomer not in talking and len(talking) >= MAX_BASES and idle:
            await idle[0].close()

    # Asking --------------------------------------------------------------------------------------

    async def has_broken(self, lease: Lease) -> None:
        """Note that a connection broke, and wait a moment for the end of the process that it led to."""
        self.deaths += 1
        await asyncio.to_thread(lease.process.has_died, 1)

    async def request(
        self, target: Target, path: str, body: Mapping[str, Any], *, embedding: bool = False
    ) -> dict[str, Any]:
        """Post to llama.cpp and return its answer; asked once more when the engine dies meanwhile."""
        for last_try in (False, True):
            async with self.lease(target, embedding=embedding) as lease:
                try:
                    reply = await lease.post(path, body, target.scales)
                    try:
                        return answer_of(reply.status, await reply.read())
                    finally:
                        reply.close()
                except ConnectionBroken as error:
                    await self.has_broken(lease)
                    if last_try:
                        raise broken(lease.process) from error
        raise AssertionError

    async def events(
        self, target: Target, path: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The server-sent events of an answer; closing the iterator (`aclosing`) stops llama.cpp too.

        An engine that dies before the first event is asked once more.
        """
        for last_try in (False, True):
            async with self.lease(target) as lease:
                begun = False
                try:
                    reply = await lease.post(path, {**body, "stream": True}, target.scales)
                    async with aclosing(_events(reply)) as events:
                        async for event in events:
                            begun = True
                            yield event
                    return
                except ConnectionBroken as error:
                    await self.has_broken(lease)
                    if last_try or begun:
                        raise broken(lease.process) from error


async def _events(reply: Reply) -> AsyncGenerator[dict[str, Any], None]:
    try:
        if reply.status >= 400:
            answer_of(reply.status, await reply.read())
        ended = False
        async for line in _lines(reply.pieces()):
            ended = ended or line == b"data: [DONE]"
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise refusal(event["error"], status=500)
                yield event
        if not ended:
            raise ConnectionBroken("the stream ended before its end mark")
    finally:
        reply.close()


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Only \\n ends a line, since U+2028 may stand in an answer."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line


def _wanted(target: Target) -> dict[str, tuple[Path, Stamp]]:
    wanted = {}
    for name, _ in target.adapters:
        path = find_adapter(name).gguf
        wanted[name] = path, _stamp(path)
    return wanted


def _stamp(path: Path) -> Stamp:
    """What tells one version of a file from the next; zeros where there is none."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return state.st_ino, state.st_size, state.st_mtime_ns


# What llama.cpp says ------------------------------------------------------------------------------


def answer_of(status: int, content: bytes) -> dict[str, Any]:
    """The JSON of a good answer. Raises ApiError with llama.cpp's reason otherwise."""
    try:
        body = json.loads(content)
    except ValueError:
        body = {}
    if status < 400 and isinstance(body, dict):
        return body
    raise refusal(body.get("error", {}) if isinstance(body, dict) else {}, status=status)


def refusal(error: Mapping[str, Any], *, status: int) -> ApiError:
    """llama.cpp's error as ours. What it calls its own failure (a template that refuses the messages, say)
    is the request's, for the engine lives on."""
    message = str(error.get("message", f"The engine answered with status {status}."))
    if error.get("type") == "exceed_context_size_error":
        return ApiError(
            400,
            f"This needs {error['n_prompt_tokens']:,} tokens and the model's context holds "
            f"{error['n_ctx']:,}: shorten it.",
            param="messages",
            code="context_length_exceeded",
        )
    return ApiError(503 if status == 503 else 400, message)


def broken(process: EngineProcess) -> EngineError:
    """What to say when an answer broke off."""
    return EngineError("The engine stopped before the answer was complete. Ask again.")
