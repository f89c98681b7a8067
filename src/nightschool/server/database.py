"""A connection to the store for each request: threads never share one."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends

from nightschool.store import Database, open_store


def database() -> Iterator[Database]:
    """The home's database, open for as long as the request lasts."""
    db = open_store()
    try:
        yield db
    finally:
        db.close()


Store = Annotated[Database, Depends(database)]
