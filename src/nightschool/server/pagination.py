"""Pages of lists, as OpenAI's API has them."""

from collections.abc import Sequence
from itertools import dropwhile
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel


class HasId(Protocol):
    @property
    def id(self) -> str: ...


Shown = TypeVar("Shown")
Listed = TypeVar("Listed", bound=HasId)


class Page(BaseModel, Generic[Shown]):
    """Part of a list, and whether there is more of it."""

    object: Literal["list"] = "list"
    data: list[Shown]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: Sequence[Any], *, has_more: bool) -> Self:
        """The page that holds this, named by its first and last ids."""
        first_id, last_id = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=list(data), first_id=first_id, last_id=last_id, has_more=has_more)


def page_after(id: str | None, every: Sequence[Listed], *, limit: int) -> tuple[list[Listed], bool]:
    """What comes after the one of that id (of all, without an id), at most `limit`; whether there is more."""
    rest = list(dropwhile(lambda each: each.id != id, every))[1:] if id else list(every)
    return rest[:limit], len(rest) > limit
