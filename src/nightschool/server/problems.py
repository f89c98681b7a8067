"""Every refusal as OpenAI's error body: {"error": {"message", "type", "param", "code"}}, or Ollama's.

Clients tell errors apart by status and code, so each class of ours has its own; messages are sentences for
people and hold no paths.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nightschool import errors
from nightschool.errors import NightschoolError

log = logging.getLogger("nightschool.server")

INVALID, SERVER, NOT_FOUND, AUTHENTICATION, PERMISSION, TOO_MANY = (
    "invalid_request_error",
    "server_error",
    "not_found_error",
    "authentication_error",
    "permission_error",
    "rate_limit_error",
)
# In what pydantic says: where a field was, a type's name among the fields', and how messages begin and end.
WHERE = (("body",), ("query",), ("path",))
OF_TYPES = re.compile(r"[A-Z]\w*|int|float|str|bool|constrained-.*|[a-z-]*\[.*", re.DOTALL)
SHOULD_BE, WHY = "Input should be ", re.compile(", (?=unable|got)")
UNREADABLE = "There was an error parsing the body"  # what FastAPI says of bytes that are no UTF-8
OLLAMA = "/api/"
TYPES = {401: AUTHENTICATION, 403: PERMISSION, 404: NOT_FOUND, 429: TOO_MANY}


class ApiError(Exception):
    """A refusal with its HTTP status; `param` names the field at fault, `code` is for programs."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def error_body(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> dict[str, dict[str, str | None]]:
    """OpenAI's error body."""
    kind = TYPES.get(status, SERVER if status >= 500 else INVALID)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(
    status: int, message: str, *, param: str | None = None, code: str | None = None, path: str = ""
) -> JSONResponse:
    """The same as a response; under Ollama's paths its body is Ollama's."""
    if path.startswith(OLLAMA):
        return JSONResponse({"error": message}, status)
    return JSONResponse(error_body(status, message, param=param, code=code), status)


# The first class that fits decides: status and code.
KINDS: list[tuple[type[NightschoolError], int, str | None]] = [
    (errors.ContextFull, 400, "context_length_exceeded"),
    (errors.NotFound, 404, "not_found"),
    (errors.NameTaken, 409, "name_taken"),
    (errors.FileFormatError, 400, "invalid_file"),
    (errors.DataError, 400, "invalid_file"),
    (errors.UnsupportedModel, 400, "unsupported_model"),
    (errors.AdapterMismatch, 400, "adapter_mismatch"),
    (errors.NotEnoughMemory, 503, "not_enough_memory"),
    (errors.EngineError, 503, "engine_error"),
    (errors.StoreError, 503, "store_error"),
    (NightschoolError, 400, None),
]


def as_api_error(error: NightschoolError) -> ApiError:
    """One of our errors as a refusal, its status and code chosen by class."""
    status, code = next((status, code) for kind, status, code in KINDS if isinstance(error, kind))
    return ApiError(status, str(error), code=code)


def add_handlers(app: FastAPI) -> None:
    """Have every error of the app answered in this form."""
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(NightschoolError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(
        error.status, error.message, param=error.param, code=error.code, path=request.url.path
    )


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, NightschoolError)
    return await _refused(request, as_api_error(error))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return await _refused(request, validation_error(error.errors()))


def validation_error(problems: Any) -> ApiError:
    """What pydantic found first, as OpenAI says it; where there is an unknown field, that one."""
    unknown = [each for each in problems if each["type"] == "extra_forbidden" and _place(each) == _bare(each)]
    alike = unknown[:1] or _alike(problems)
    kind, param = alike[0]["type"], ".".join(_place(alike[0])) or None
    if kind == "json_invalid":
        return ApiError(400, "The body is not valid JSON.", code="invalid_json")
    if kind == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: {param!r}.", param=param, code="unknown_parameter")
    if kind == "missing":
        said = f"Missing required parameter: {param!r}." if param else "The request needs a body."
        return ApiError(400, said, param=param, code="missing_required_parameter")
    return ApiError(400, f"Invalid {param or 'request'}: {_said(alike)}.", param=param, code="invalid_value")


def _alike(problems: Any) -> list[Any]:
    """What says most of the first field at fault: a value of none of several types has one for each."""
    found = [each for each in problems if _place(each)[:1] == _place(problems[0])[:1]]
    deepest = max(len(_place(each)) for each in found)
    found = [each for each in found if len(_place(each)) == deepest]
    found = [each for each in found if not each["type"].endswith("_type")] or found
    return [each for each in found if _place(each) == _place(found[0])]


def _bare(problem: Any) -> list[str]:
    where = problem["loc"][1:] if problem["loc"][:1] in WHERE else problem["loc"]
    return [str(part) for part in where]


def _place(problem: Any) -> list[str]:
    """Where a problem is as the client wrote it, without pydantic's names for types."""
    field, *rest = _bare(problem) or [""]
    return [part for part in (field, *(each for each in rest if not OF_TYPES.fullmatch(each))) if part]


def _said(problems: Sequence[Any]) -> str:
    """The message of a problem, or of all where the value may be one thing or another."""
    said: list[str] = [each["msg"].replace(" after validation", "") for each in problems]
    first, *others = dict.fromkeys(said)
    if not others or not all(each.startswith(SHOULD_BE) for each in (first, *others)):
        return first
    return SHOULD_BE + " or ".join(WHY.split(each)[0].removeprefix(SHOULD_BE) for each in (first, *others))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    said = {
        404: f"There is no {request.method} {request.url.path} here; docs/api.md lists what there is.",
        405: f"{request.url.path} does not take {request.method}.",
    }.get(error.status_code, str(error.detail))
    if error.detail == UNREADABLE:
        unreadable = ApiError(400, "The body is not valid JSON in UTF-8.", code="invalid_json")
        return await _refused(request, unreadable)
    response = await _refused(request, ApiError(error.status_code, said))
    response.headers.update(error.headers or {})
    return response


class LastResort:
    """A mistake of ours is a 500 with a body like every other error; the traceback goes to the log alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def sending(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            if has_begun or scope["type"] != "http":
                raise
            log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            said = "Something went wrong here; the server's log says what."
            response = error_response(500, said, path=scope["path"])
            await response(scope, receive, send)
