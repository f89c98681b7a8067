"""/docs: the routes and their fields as a page made here, from what /openapi.json says.

FastAPI's own page loads scripts from elsewhere; this one loads nothing.
"""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
summary { cursor: pointer; padding: .4rem 0; }
summary code { font-weight: 600; }
pre { overflow-x: auto; padding: 1rem; background: color-mix(in srgb, currentColor 7%, transparent); }
table { border-collapse: collapse; }
td, th { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0; }
"""

router = APIRouter(include_in_schema=False)


@router.get("/docs")
def page(request: Request) -> HTMLResponse:
    """Every route with what it takes."""
    return HTMLResponse("\n".join(_page(request.app.openapi())))


@router.get("/docs/style.css")
def style() -> Response:
    """How the page looks; a file of its own, for inline styles are not allowed."""
    return Response(STYLE, media_type="text/css")


def _page(document: dict[str, Any]) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width"><title>Nightschool: the API</title>'
    yield '<link rel="stylesheet" href="/docs/style.css"></head><body><h1>Nightschool: the API</h1>'
    version = escape(document["info"]["version"])
    yield f'<p>{version}. For programs: <a href="/openapi.json">openapi.json</a></p>'
    tags: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            lines = tags.setdefault(route.get("tags", ["other"])[0], [])
            lines.extend(_route(method, path, route, document))
    for tag, lines in tags.items():
        yield f"<h2>{escape(tag)}</h2>"
        yield from lines
    yield "</body></html>"


def _route(method: str, path: str, route: dict[str, Any], document: dict[str, Any]) -> Iterator[str]:
    summary = f"<code>{method.upper()} {escape(path)}</code> {escape(route.get('summary', ''))}"
    yield f"<details><summary>{summary}</summary>"
    for paragraph in route.get("description", "").split("\n\n"):
        yield f"<p>{escape(paragraph)}</p>"
    if route.get("parameters"):
        yield "<table>"
        for each in route["parameters"]:
            kind = escape(json.dumps(each.get("schema", {})))
            yield f"<tr><td><code>{escape(each['name'])}</code></td><td>{each['in']}</td><td>{kind}</td></tr>"
        yield "</table>"
    for kind, content in route.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body, {escape(kind)}:</p>"
        yield f"<pre>{escape(json.dumps(_resolved(content.get('schema', {}), document), indent=1))}</pre>"
    yield "</details>"


def _resolved(schema: Any, document: dict[str, Any], depth: int = 0) -> Any:
    """A schema with what it refers to in its place."""
    if isinstance(schema, list):
        return [_resolved(each, document, depth) for each in schema]
    if not isinstance(schema, dict) or depth > 8:
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return _resolved(document["components"]["schemas"][name], document, depth + 1)
    return {key: _resolved(value, document, depth) for key, value in schema.items() if key != "title"}
