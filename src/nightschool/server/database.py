"""A connection to the store for each request: threads never share one."""

import time
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends

from nightschool.store import Database, open_store, purge

PURGE_TRIES, PURGE_WAIT_S = 20, 0.05


def database() -> Iterator[Database]:
    """The home's database, open for as long as the request lasts."""
    db = open_store()
    try:
        yield db
    finally:
        db.close()


Store = Annotated[Database, Depends(database)]


def purge_soon(db: Database) -> bool:
    """Remove what deleted rows left behind as soon as nobody reads; False where that takes too long."""
    for _ in range(PURGE_TRIES):
        if purge(db):
            return True
        time.sleep(PURGE_WAIT_S)
    return False
