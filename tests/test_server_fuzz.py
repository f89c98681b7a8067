"""Requests made from our own OpenAPI by schemathesis: whatever is asked, the server never fails.

Half of them fit the schema and half do not. What they start goes through the real engine; a study or a
training needs what no random request has.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from serving import Serving, serving

from nightschool.server.app import create_app
from nightschool.settings import ServeSettings

EXAMPLES = 6
HURRIED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
SCHEMA = schemathesis.openapi.from_dict(create_app(ServeSettings()).openapi())
OPERATIONS = {result.ok().label: result.ok() for result in SCHEMA.get_all_operations()}


@pytest.fixture(scope="module", autouse=True)
def home(module_home):
    return module_home


@pytest.fixture(scope="module")
def server(home) -> Iterator[Serving]:
    with serving(ctx=64) as server:
        yield server


@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_makes_the_server_fail(server, label):
    operation = OPERATIONS[label]
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    for mode in modes:

        @HURRIED
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            found = case.call(base_url=server.url, timeout=20)
            assert found.status_code < 500, (found.status_code, found.text, case.as_curl_command())
            if found.status_code >= 400 and found.headers.get("content-type") == ["application/json"]:
                check_error(found.json()["error"], is_ollama=label.split()[1].startswith("/api/"))

        with suppress(Unsatisfiable):  # nothing about such a request could be wrong
            ask()


def check_error(error, *, is_ollama: bool) -> None:
    """OpenAI's form, or Ollama's, which is a text."""
    if is_ollama and isinstance(error, str):
        assert error
    else:
        assert error["message"] and set(error) == {"message", "type", "param", "code"}


def test_the_description_names_every_route_and_no_path_of_this_machine(server):
    document = httpx.get(server.url + "/openapi.json").text
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/health"):
        assert f'"{path}"' in document
    assert "/home/" not in document and "/tmp/" not in document and "/root/" not in document


def test_the_page_of_the_api_tells_of_every_route():
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    for path in SCHEMA.raw_schema["paths"]:
        area = "/".join(path.split("/")[:3]).split("{")[0].rstrip("/")
        assert area in page or f"/{area.split('/')[1]}/" in page, f"{path} is not in docs/api.md"
