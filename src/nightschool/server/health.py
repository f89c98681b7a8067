"""/health for whoever waits for the server, /metrics for Prometheus."""

from fastapi import APIRouter
from pydantic import BaseModel

from nightschool import __version__

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The server answers."""

    status: str = "ok"
    version: str = __version__


@router.get("/health")
async def health() -> Health:
    """Say that the server is there; starts no engine."""
    return Health()
