"""Who writes the lessons where the base shall not do it alone: another base here, or a server elsewhere.

A server may be on another machine: then the person's notes leave this one. The study says so before that.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import httpx

from nightschool.engine import Engine, Sampling
from nightschool.errors import EngineError
from nightschool.hub import find_base

TIMEOUT_S = 300.0
HERE = ("127.0.0.1", "localhost", "::1")


def is_remote(teacher: str) -> bool:
    """Whether a teacher is an address rather than a base."""
    return teacher.startswith(("http://", "https://"))


def announcement(teacher: str) -> str:
    """What the person must know about this teacher."""
    if not is_remote(teacher):
        return f"The lessons are written by {teacher}, on this machine."
    host = httpx.URL(teacher).host
    if host in HERE:
        return (
            f"The lessons are written by the server at {teacher}: your notes are sent to it, on this machine."
        )
    return f"The lessons are written by {host}: the text of your notes LEAVES THIS MACHINE and is sent there."


@contextmanager
def open_teacher(teacher: str, *, slots: int, threads: int) -> Iterator["Engine | Server"]:
    """A teacher ready to answer. Raises NotFound for an unknown base."""
    if is_remote(teacher):
        with Server(teacher) as server:
            yield server
    else:
        with Engine(find_base(teacher).path, slots=slots, threads=threads) as engine:
            yield engine


class Server:
    """An OpenAI-compatible server; the model is the first one it lists, a password in the URL is its key."""

    def __init__(self, url: str) -> None:
        whole = httpx.URL(url)
        headers = {"Authorization": f"Bearer {whole.password}"} if whole.password else {}
        bare = str(whole.copy_with(username=None, password=None))
        self.url = bare.rstrip("/").removesuffix("/chat/completions")
        self.client = httpx.Client(timeout=TIMEOUT_S, headers=headers)
        self.model = self._first_model()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def _first_model(self) -> str:
        listed = self._answer("GET", "/models")
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise EngineError(
                f"The teacher at {self.url} lists no model. Is it an OpenAI-compatible server?"
            ) from None

    def chat(self, messages: Sequence[Mapping[str, Any]], **sampling: Unpack[Sampling]) -> str:
        """The answer to a conversation. Raises EngineError."""
        body: dict[str, Any] = {"model": self.model, "messages": list(messages), **sampling}
        schema = body.pop("json_schema", None)
        if schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "items", "schema": schema, "strict": True},
            }
        try:
            found = self._answer("POST", "/chat/completions", body)
        except EngineError:
            if schema is None:
                raise
            del body["response_format"]  # many servers know no schemas; what is no JSON is left out later
            found = self._answer("POST", "/chat/completions", body)
        try:
            return str(found["choices"][0]["message"].get("content") or "")
        except (KeyError, IndexError, TypeError):
            raise EngineError(
                f"The teacher at {self.url} gave an answer that is no chat completion."
            ) from None

    def _answer(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            response = self.client.request(method, self.url + path, json=body)
            response.raise_for_status()
            return response.json()
        except httpx.HTTPStatusError as error:
            raise EngineError(f"The teacher at {self.url} refused: {error.response.text[:200]}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise EngineError(f"The teacher at {self.url} does not answer ({error}).") from error
