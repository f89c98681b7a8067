"""How probable given tokens are, from the process that computes it (scoring), which is started when needed.

The server itself never loads torch. The process ends when nobody has asked for a while.
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nightschool.adapters import find_adapter
from nightschool.errors import EngineError
from nightschool.server.models import Target
from nightschool.server.problems import ApiError

IDLE_S = 300.0
LINE_BYTES = 1 << 28  # of an answer

Candidates = list[tuple[int, float]]


@dataclass(frozen=True)
class Scored:
    """For each token of a prompt, and for the likeliest after it: log-probability and candidates.

    The first token of a prompt has neither.
    """

    logprobs: list[float | None]
    top: list[Candidates | None]


class Scores:
    """The process, one request at a time."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._leaving: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def score(self, target: Target, prompts: Sequence[Sequence[int]], *, top: int) -> list[Scored]:
        """Score prompts of token ids by a base with adapters. Raises EngineError when the process dies."""
        files = [find_adapter(name).gguf for name, _ in target.adapters]
        request = {
            "base": str(target.base.path),
            "adapters": [[str(file), scale] for file, (_, scale) in zip(files, target.adapters, strict=True)],
            "version": [os.stat(file).st_mtime_ns for file in (target.base.path, *files)],
            "prompts": prompts,
            "top": top,
            "threads": self._threads,
        }
        # Whoever asked may leave: the answer must still be read, or the next would get it.
        task = asyncio.create_task(self._exchange(json.dumps(request).encode() + b"\n"))
        self._keep(task)
        return await asyncio.shield(task)

    async def _exchange(self, line: bytes) -> list[Scored]:
        async with self._turn:
            said = await self._ask(line) or await self._ask(line)  # it may have been killed since the last
            if not said:
                raise EngineError("The process that scores texts has ended, perhaps for want of memory.")
            self._leaving = asyncio.get_running_loop().call_later(IDLE_S, self._leave)
        answer = json.loads(said)
        if "error" in answer:
            raise ApiError(400, answer["error"])
        return [Scored(each["logprobs"], each["top"]) for each in answer["scores"]]

    async def _ask(self, line: bytes) -> bytes:
        """One line for another; b"" when the process ends instead."""
        process = await self._started()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(line)
            await process.stdin.drain()
            said = await process.stdout.readline()
        except ConnectionError:
            said = b""
        if not said:
            await self._end()
        return said

    async def _started(self) -> asyncio.subprocess.Process:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "nightschool.scoring"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=LINE_BYTES,
                start_new_session=True,  # Ctrl-C is the server's business
            )
        return self._process

    def _leave(self) -> None:
        """End the process without waiting: the end of its stdin is enough."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            self._keep(asyncio.create_task(process.wait()))

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()

    async def close(self) -> None:
        """End the process; who still waits for it is told so."""
        if self._leaving is not None:
            self._leaving.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end()
