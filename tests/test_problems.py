"""What is wrong with a request, said in one sentence that names the field as the client wrote it."""

import httpx
import pytest

pytestmark = pytest.mark.one_server

CHAT, COMPLETIONS, JOBS = "/v1/chat/completions", "/v1/completions", "/v1/fine_tuning/jobs"
SEARCH = "/v1/vector_stores/vs_memory/search"
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
ORDER = {"model": "ember", "training_file": "file-1"}


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (CHAT, HELLO | {"stop": 5}, "stop", "Input should be a valid string or a valid list"),
        (CHAT, HELLO | {"stop": ""}, "stop", "String should have at least 1 character"),
        (CHAT, HELLO | {"stop": ["a", 5]}, "stop.1", "Input should be a valid string"),
        (CHAT, HELLO | {"tool_choice": "x"}, "tool_choice", "Input should be 'none', 'auto' or 'required'"),
        (CHAT, {"messages": []}, "messages", "List should have at least 1 item, not 0"),
        (COMPLETIONS, {"prompt": []}, "prompt", "List should have at least 1 item, not 0"),
        (COMPLETIONS, {"prompt": [1, -2]}, "prompt.1", "Input should be greater than or equal to 0"),
        (SEARCH, {"query": ""}, "query", "String should have at least 1 character"),
        (
            JOBS,
            ORDER | {"hyperparameters": {"n_epochs": "x"}},
            "hyperparameters.n_epochs",
            "Input should be a valid integer or 'auto'",
        ),
    ],
)
def test_a_value_of_none_of_several_types_is_one_sentence(server, path, body, param, message):
    answer = httpx.post(server.url + path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", param)
    assert error["message"] == f"Invalid {param}: {message}."


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        (CHAT, HELLO | {"tool_choice": {"type": "function"}}, "tool_choice.function", "missing_required"),
        (SEARCH, {"query": "a", "filters": {"type": "eq", "key": "a"}}, "filters.value", "missing_required"),
        (
            SEARCH,
            {"query": "a", "filters": {"type": "eq", "key": "a", "value": 1, "z": 1}},
            "filters.z",
            "unknown",
        ),
        (CHAT, {"messages": [], "zork": 1}, "zork", "unknown"),
    ],
)
def test_what_is_missing_or_unknown_inside_such_a_value_is_named(server, path, body, param, code):
    error = httpx.post(server.url + path, json=body).json()["error"]
    assert (error["param"], error["code"]) == (param, code + "_parameter")


def test_bytes_that_are_no_text_are_refused_as_what_they_are(server):
    for content in (b'{"model": "\xe9"}', b"[" * 100_000):
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(server.url + CHAT, content=content, headers=headers)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "invalid_json")
        assert error["message"] == "The body is not valid JSON in UTF-8."


def test_a_text_to_come_after_is_refused_and_an_empty_one_taken(server):
    body = {"prompt": "The boat", "max_tokens": 1}
    assert httpx.post(server.url + COMPLETIONS, json=body | {"suffix": ""}).status_code == 200
    error = httpx.post(server.url + COMPLETIONS, json=body | {"suffix": "!"}).json()["error"]
    assert error["param"] == "suffix" and "leave `suffix` away" in error["message"]
