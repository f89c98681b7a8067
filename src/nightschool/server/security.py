"""Who may speak to the server, and how: checked before any route sees a request.

A web page anywhere on the internet can have its visitor's browser send requests to this machine. So:

- the name in `Host` must be one of this machine's: foreign names that point here (DNS rebinding) are not;
- an `Origin` must be allowed: other web pages can neither read nor cause anything;
- bodies are JSON or multipart, never what a form on a foreign page could send;
- an address that others can reach needs an API key, compared in constant time;
- sizes and numbers of requests have limits, wide ones for this machine itself.

Every response says that nothing from elsewhere may be loaded (CSP) and that no other page may embed it.
"""

import hmac
import ipaddress
import platform
import re
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nightschool.errors import NightschoolError
from nightschool.server.problems import ApiError, error_response
from nightschool.settings import ServeSettings

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
ORIGINS = frozenset({"app://obsidian.md", "capacitor://localhost"})
PUBLIC = re.compile(r"/|/web/.*|/docs(/.*)?|/openapi\.json|/health|/favicon\.ico")  # need no key
JSON_BYTES, UPLOAD_BYTES = 32 << 20, 1 << 30
AT_ONCE = 1000  # requests under way
A_MINUTE = 1200  # from one address that is not this machine
WRONG_KEYS_A_MINUTE = 20  # from any one address
MAX_ADDRESSES = 10_000
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self';"
    " connect-src 'self'; manifest-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
HOST = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::\d{1,5})?")
HEADER_NAMES = re.compile(r"[A-Za-z0-9-]+(\s*,\s*[A-Za-z0-9-]+)*")


def check_address(settings: ServeSettings) -> None:
    """Raise NightschoolError for an address that others can reach, without a key."""
    if settings.host not in LOOPBACK and not settings.api_key:
        raise NightschoolError(
            f"Others can reach {settings.host}: choose an API key with --api-key, or leave --host away to"
            " serve this machine alone."
        )


class Gate:
    """The first thing a request meets."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._settings = settings
        self._key = settings.api_key.encode()
        self._under_way = 0
        self._requests = Counter(A_MINUTE)
        self._wrong_keys = Counter(WRONG_KEYS_A_MINUTE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            raise ValueError(f"{scope['type']} is not served")
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        try:
            self._check(scope, headers, origin)
        except ApiError as error:
            response: Response = error_response(
                error.status, error.message, code=error.code, path=scope["path"]
            )
            if error.status == 401:
                response.headers["WWW-Authenticate"] = "Bearer"
            allowed = origin if origin and self._may_ask(origin, headers) else None
            await response(scope, receive, _with_headers(send, allowed))
            return
        send = _with_headers(send, origin)
        if _is_preflight(scope, headers):
            await _preflight(headers)(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._app(scope, _limited(receive, _limit(headers)), send)
        finally:
            self._under_way -= 1

    def _check(self, scope: Scope, headers: Headers, origin: str | None) -> None:
        """Raise ApiError for a request that may not pass."""
        if not self._is_ours(_host_name(headers.get("host", ""))):
            raise ApiError(403, "The server does not go by that name.", code="host_not_allowed")
        if origin is not None and not self._may_ask(origin, headers):
            raise ApiError(403, "That origin may not use this server.", code="origin_not_allowed")
        if origin is None and headers.get("sec-fetch-site") == "cross-site" and not _is_page(scope, headers):
            raise ApiError(403, "Another site's page may not use this server.", code="origin_not_allowed")
        address = scope["client"][0] if scope.get("client") else ""
        is_remote = address not in LOOPBACK
        if self._under_way >= AT_ONCE or (is_remote and self._requests.is_full(address)):
            raise ApiError(429, "Too many requests: wait a little.", code="rate_limit_exceeded")
        self._requests.add(address)
        if _is_preflight(scope, headers):
            return
        if self._key and not PUBLIC.fullmatch(scope["path"]):
            self._check_key(headers, address)
        _check_body(scope, headers)

    def _check_key(self, headers: Headers, address: str) -> None:
        if address not in LOOPBACK and self._wrong_keys.is_full(address):
            raise ApiError(429, "Too many wrong keys: wait a minute.", code="rate_limit_exceeded")
        given = headers.get("authorization", "").removeprefix("Bearer ") or headers.get("x-api-key", "")
        if hmac.compare_digest(given.strip().encode(), self._key):
            return
        self._wrong_keys.add(address)
        raise ApiError(401, "That is not this server's API key.", code="invalid_api_key")

    def _is_ours(self, name: str) -> bool:
        """Whether a name can only mean this machine; an address always does, for nobody else can own it."""
        if name in LOOPBACK or name == self._settings.host:
            return True
        if self._settings.host in LOOPBACK:
            return False
        own = platform.node().lower()
        return name in (own, f"{own.removesuffix('.local')}.local") or _is_address(name)

    def _may_ask(self, origin: str, headers: Headers) -> bool:
        if origin in ORIGINS or origin in self._settings.origins:
            return True
        try:
            parts = urlsplit(origin)
            name = parts.hostname
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or name is None or parts.path or parts.query:
            return False
        return name in LOOPBACK or (parts.netloc == headers.get("host") and self._is_ours(name))


class Counter:
    """How often each address did something in the minute that began with its first time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[str, tuple[float, int]] = {}

    def add(self, address: str) -> None:
        """Count once more."""
        if len(self._counts) > MAX_ADDRESSES:
            self._counts.clear()
        begun, count = self._current(address)
        self._counts[address] = begun, count + 1

    def is_full(self, address: str) -> bool:
        """Whether it was as often as is allowed."""
        return self._current(address)[1] >= self._most

    def _current(self, address: str) -> tuple[float, int]:
        now = time.monotonic()
        begun, count = self._counts.get(address, (now, 0))
        return (begun, count) if now - begun < 60 else (now, 0)


def _host_name(host: str) -> str:
    """`Host` without its port; "" for what is none."""
    match = HOST.fullmatch(host)
    return (match["six"] or match["name"]).lower() if match else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_page(scope: Scope, headers: Headers) -> bool:
    """A link from elsewhere to one of the pages for people."""
    is_followed = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
    return is_followed and PUBLIC.fullmatch(scope["path"]) is not None


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


def _preflight(headers: Headers) -> Response:
    wanted = headers.get("access-control-request-headers", "")
    answer = {
        "Access-Control-Allow-Methods": "GET, POST, DELETE",
        "Access-Control-Allow-Headers": wanted if HEADER_NAMES.fullmatch(wanted) else "content-type",
        "Access-Control-Max-Age": "600",
    }
    if headers.get("access-control-request-private-network") == "true":
        answer["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=answer)


def _with_headers(send: Send, origin: str | None) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.add_vary_header("Origin")
            if origin is not None:
                headers["Access-Control-Allow-Origin"] = origin
        await send(message)

    return sending


# Bodies -------------------------------------------------------------------------------------------


def _check_body(scope: Scope, headers: Headers) -> None:
    """Raise ApiError for a body of another type, or one that says that it is too long."""
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > _limit(headers):
        raise ApiError(413, f"A body may hold {_limit(headers):,} bytes.", code="request_too_large")
    has_body = int(length) > 0 or "transfer-encoding" in headers
    kind = _media_type(headers)
    if has_body and kind not in ("application/json", "multipart/form-data"):
        raise ApiError(415, "Send JSON (Content-Type: application/json) or multipart/form-data.")


def _media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _limit(headers: Headers) -> int:
    return UPLOAD_BYTES if _media_type(headers) == "multipart/form-data" else JSON_BYTES


def _limited(receive: Receive, most: int) -> Receive:
    """The body, as long as it keeps to the limit whatever its headers said."""
    received = 0

    async def receiving() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            raise HTTPException(413, f"A body may hold {most:,} bytes.")
        return message

    return receiving
