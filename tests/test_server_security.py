"""Who may speak to the server: names, origins, keys, kinds and sizes of bodies."""

import asyncio
import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from serving import Serving, serving

from nightschool.errors import NightschoolError
from nightschool.server import security
from nightschool.server.app import create_app
from nightschool.settings import ServeSettings

KEY = "s3cret-and-long"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module", autouse=True)
def home(module_home):
    return module_home


@pytest.fixture(scope="module")
def server(home) -> Iterator[Serving]:
    with serving(origins=("https://notes.example",)) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(home) -> Iterator[Serving]:
    with serving(api_key=KEY) as server:
        yield server


def refusal(response: httpx.Response) -> tuple[int, str | None]:
    """Status and code of an error that has OpenAI's form."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return response.status_code, error["code"]


def port_of(server: Serving) -> int:
    return urlsplit(server.url).port or 0


# Names and origins --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "[::2]", "", "a b", "@127.0.0.1:x"]
)
def test_a_foreign_name_that_points_here_is_refused(server, host):
    for path in ("/v1/models", "/", "/health", "/nothing"):
        found = httpx.get(server.url + path, headers={"Host": host})
        assert found.status_code in (400, 403)
        if found.status_code == 403:
            assert refusal(found) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:{port}"]
)
def test_this_machines_names_are_its_own(server, host):
    name = host.format(port=port_of(server))
    assert httpx.get(server.url + "/v1/models", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1.evil.example",
     "file://", "https://notes.example.evil", "http://[", "chrome-extension://abc"],
)  # fmt: skip
def test_a_foreign_origin_is_refused_and_gets_no_leave_to_read(server, origin):
    for method in ("GET", "POST", "OPTIONS"):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        found = httpx.request(method, server.url + "/v1/models", headers=headers)
        assert refusal(found) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize(
    "origin",
    ["app://obsidian.md", "http://localhost:3000", "http://127.0.0.1", "https://localhost", "http://[::1]:80",
     "https://notes.example"],
)  # fmt: skip
def test_an_allowed_origin_may_ask_and_read(server, origin):
    wanted = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    before = httpx.options(server.url + "/v1/chat/completions", headers={"Origin": origin, **wanted})
    assert before.status_code == 204 and before.headers["access-control-allow-origin"] == origin
    assert before.headers["access-control-allow-headers"] == wanted["Access-Control-Request-Headers"]
    assert "POST" in before.headers["access-control-allow-methods"]
    found = httpx.get(server.url + "/v1/models", headers={"Origin": origin})
    assert found.status_code == 200 and found.headers["access-control-allow-origin"] == origin
    assert "Origin" in found.headers["vary"]


def test_another_sites_page_cannot_cause_anything_even_without_an_origin(server):
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert refusal(httpx.get(server.url + "/v1/models", headers=image)) == (403, "origin_not_allowed")
    assert refusal(httpx.get(server.url + "/v1/models", headers=link)) == (403, "origin_not_allowed")
    assert httpx.get(server.url + "/docs", headers=link).status_code == 200


# Keys ---------------------------------------------------------------------------------------------


def test_with_a_key_nothing_but_the_page_answers_without_it(guarded):
    for path in ("/v1/models", "/metrics", "/v1/files", "/nothing", "/v1/../v1/models", "//v1/models"):
        found = httpx.get(guarded.url + path)
        assert refusal(found) == (401, "invalid_api_key") and found.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/docs", "/openapi.json"):
        assert httpx.get(guarded.url + path).status_code == 200


def test_the_key_is_understood_as_openais_and_as_anthropics_clients_send_it(guarded):
    with guarded.openai(api_key=KEY) as client, guarded.openai(api_key=KEY[:-1]) as wrong:
        assert client.models.list().data
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
    assert httpx.get(guarded.url + "/v1/models", headers={"x-api-key": KEY}).status_code == 200
    assert httpx.get(guarded.url + "/v1/models", headers={"x-api-key": "é".encode()}).status_code == 401


def test_a_preflight_needs_no_key_for_browsers_send_none(guarded):
    headers = {"Origin": "http://localhost:1", "Access-Control-Request-Method": "POST"}
    assert httpx.options(guarded.url + "/v1/models", headers=headers).status_code == 204


async def statuses(keys: list[str], *, address: str, paths: str = "/v1/models") -> list[int]:
    """What a client at another address gets for its keys."""
    app = create_app(ServeSettings(host="0.0.0.0", api_key=KEY))
    transport = httpx.ASGITransport(app, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return [(await client.get(paths, headers={"x-api-key": key})).status_code for key in keys]


def test_guessing_keys_from_elsewhere_ends_soon_and_the_right_one_comes_too_late():
    guesses = [str(number) for number in range(security.WRONG_KEYS_A_MINUTE + 1)]
    found = asyncio.run(statuses([*guesses, KEY], address="192.168.7.9"))
    assert found[0] == 401 and found[-2:] == [429, 429]
    assert asyncio.run(statuses([*guesses, KEY], address="127.0.0.1"))[-1] == 200


def test_requests_from_elsewhere_are_limited_and_this_machines_are_not(monkeypatch):
    monkeypatch.setattr(security, "A_MINUTE", 5)
    asked = {"keys": [KEY] * 7, "paths": "/health"}
    assert asyncio.run(statuses(**asked, address="192.168.7.9")) == [200] * 5 + [429] * 2
    assert asyncio.run(statuses(**asked, address="127.0.0.1")) == [200] * 7


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_address_that_others_can_reach_needs_a_key(host):
    with pytest.raises(NightschoolError, match="choose an API key with --api-key"):
        create_app(ServeSettings(host=host))
    assert create_app(ServeSettings(host=host, api_key=KEY))


def test_a_server_for_others_goes_by_its_addresses_and_not_by_foreign_names(home):
    with serving(host="0.0.0.0", api_key=KEY) as server:
        for host, status in (
            ("192.168.7.7:80", 200),
            ("[fe80::1]", 200),
            ("evil.example", 403),
            ("127.0.0.1", 200),
        ):
            headers = {"Host": host, "x-api-key": KEY}
            assert httpx.get(server.url + "/v1/models", headers=headers).status_code == status
        same = {"Host": "192.168.7.7:80", "Origin": "http://192.168.7.7:80", "x-api-key": KEY}
        assert httpx.get(server.url + "/v1/models", headers=same).status_code == 200
        other = same | {"Origin": "http://192.168.7.8:80"}
        assert httpx.get(server.url + "/v1/models", headers=other).status_code == 403


def test_no_key_and_no_text_reaches_the_log(guarded, caplog):
    caplog.set_level("DEBUG", logger="nightschool")
    caplog.set_level("DEBUG", logger="uvicorn")
    body = {"model": "nobody", "messages": [{"role": "user", "content": "my diary"}]}
    httpx.post(guarded.url + "/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert KEY not in caplog.text and "diary" not in caplog.text


# Bodies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "text/plain; application/json", ""]
)
def test_bodies_that_a_form_on_a_foreign_page_could_send_are_refused(server, kind):
    body = b'{"model": "ember", "messages": [{"role": "user", "content": "hi"}]}'
    found = httpx.post(server.url + "/v1/chat/completions", content=body, headers={"Content-Type": kind})
    assert refusal(found) == (415, None)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"model": NaN}', b'"\\ud800"']
)
def test_a_body_that_is_no_request_is_a_400(server, body):
    for path in (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
    ):
        assert refusal(httpx.post(server.url + path, content=body, headers=JSON))[0] == 400


def test_numbers_that_are_no_json_and_half_characters_do_no_harm(server):
    message = (
        '{"model": "ember", "max_tokens": 1, "messages": [{"role": "user", "content": "%s"}], "tools": %s}'
    )
    tool = '[{"type": "function", "function": {"name": "f", "parameters": {"x": %s}}}]'
    for content, tools in (
        ("\\ud800", "[]"),
        ("hi", tool % "NaN"),
        ("hi", tool % "1e999"),
        ("\\u0000", "[]"),
    ):
        body = (message % (content, tools)).encode()
        assert httpx.post(server.url + "/v1/chat/completions", content=body, headers=JSON).status_code < 500


def test_a_body_that_is_too_long_is_refused_whatever_it_says_of_itself(server, monkeypatch):
    monkeypatch.setattr(security, "JSON_BYTES", 1000)
    long = b'{"x": "' + b"a" * 2000 + b'"}'
    assert refusal(httpx.post(server.url + "/v1/embeddings", content=long, headers=JSON))[0] == 413
    in_pieces = (long[at : at + 100] for at in range(0, len(long), 100))
    assert refusal(httpx.post(server.url + "/v1/embeddings", content=in_pieces, headers=JSON))[0] == 413
    with socket.create_connection(("127.0.0.1", port_of(server))) as raw:
        raw.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        assert b" 413 " in raw.recv(100)


# What is answered ---------------------------------------------------------------------------------


def test_every_answer_forbids_loading_anything_from_elsewhere(server):
    for path in ("/health", "/v1/models", "/nothing", "/docs", "/v1/chat/completions"):
        found = httpx.get(server.url + path)
        policy = dict(
            part.strip().partition(" ")[::2] for part in found.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
        assert not re.search(r"https?:|\*|unsafe", found.headers["content-security-policy"])
        assert found.headers["x-content-type-options"] == "nosniff"


def test_the_reference_page_loads_nothing_from_elsewhere(server):
    page = httpx.get(server.url + "/docs").text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert loaded and all(link.startswith("/") for link in loaded)
    assert "<script" not in page and "/v1/chat/completions" in page
    assert httpx.get(server.url + "/docs/style.css").status_code == 200


def test_what_is_not_there_is_said_in_openais_form(server):
    assert refusal(httpx.get(server.url + "/v1/nothing"))[0] == 404
    wrong = httpx.get(server.url + "/v1/chat/completions")
    assert refusal(wrong)[0] == 405 and wrong.headers["allow"] == "POST"


def test_a_path_is_no_model_and_tells_nothing(server, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    answers = []
    for name in (str(tmp_path / "x.gguf"), str(tmp_path / "y.gguf"), "../../etc/passwd", "ember+../../x"):
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
        found = httpx.post(server.url + "/v1/chat/completions", json=body)
        assert found.status_code == 404
        answers.append(found.json()["error"]["message"].replace(name, "NAME"))
    assert answers[0] == answers[1]
