"""The page for people: files of web/ as they are. They use the public API and nothing else."""

from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

from nightschool.server.problems import ApiError

FOLDER = Path(__file__).parent / "web"
# Written out: what a machine's own table says of .js is now and then wrong, and then no browser runs it.
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FRESH = {"Cache-Control": "no-cache"}  # a newer program brings a newer page

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
def page() -> FileResponse:
    """The page."""
    return _file("index.html")


@router.get("/web/{name}")
def part(name: str) -> FileResponse:
    """What the page loads."""
    if name not in _names():  # nothing but these can be named, however a path is written
        raise ApiError(404, f"The page has no part {name!r}.", code="not_found")
    return _file(name)


@cache
def _names() -> frozenset[str]:
    return frozenset(file.name for file in FOLDER.iterdir() if file.suffix in TYPES)


def _file(name: str) -> FileResponse:
    file = FOLDER / name
    return FileResponse(file, media_type=TYPES[file.suffix], headers=FRESH)
