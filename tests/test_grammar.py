"""Schemas as grammars: what llama.cpp writes under them fits, on both kinds of vocabulary."""

import json

import pytest
from tiny import write_tiny

from nightschool.engine import Engine
from nightschool.errors import EngineError
from nightschool.grammar import schema_to_grammar

SHORT = {"type": "string", "maxLength": 6}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"name": SHORT, "parts": {"items": {"$ref": "#/$defs/leaf"}, "maxItems": 2}},
            "required": ["name", "parts"],
        },
        "leaf": {"enum": ["a", "é\n\"\\", 3]},
    },
}  # fmt: skip
OPTIONAL = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"const": "x"}},
    "required": ["b"],
}


def is_tree(value):
    return (
        list(value) == ["name", "parts"]
        and len(value["name"]) <= 6
        and len(value["parts"]) <= 2
        and all(part in ("a", 'é\n"\\', 3) for part in value["parts"])
    )


CASES = [
    ({"type": "array", "items": SHORT, "minItems": 2, "maxItems": 3}, lambda v: 2 <= len(v) <= 3),
    ({"type": "array", "items": {"type": "boolean"}, "maxItems": 0}, lambda v: v == []),
    ({"type": "string", "minLength": 3, "maxLength": 4}, lambda v: 3 <= len(v) <= 4),
    ({"type": "integer"}, lambda v: isinstance(v, int)),
    ({"type": "number"}, lambda v: isinstance(v, (int, float))),
    ({"type": ["boolean", "null"]}, lambda v: v in (True, False, None)),
    ({"anyOf": [{"const": {"k": [1]}}, {"enum": ["yes", "no"]}]}, lambda v: v in ({"k": [1]}, "yes", "no")),
    (OPTIONAL, lambda v: "b" in v and v["b"] is None and list(v) == sorted(v) and v.get("c", "x") == "x"),
    (
        {"type": "object", "properties": {"q": SHORT, "n": {"type": "boolean"}}},
        lambda v: set(v) <= {"q", "n"},
    ),
    (TREE, is_tree),
]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def engine(request, tmp_path_factory):
    """SentencePiece and byte-level BPE."""
    base = write_tiny(tmp_path_factory.mktemp("grammar") / "m.gguf", request.param, layers=1)
    with Engine(base) as engine:
        yield engine


@pytest.mark.parametrize(("schema", "fits"), CASES)
def test_every_answer_fits_its_schema(engine, schema, fits):
    for seed in range(6):
        body = engine.complete("the stone", json_schema=schema, seed=seed, temperature=2.0, max_tokens=300)
        assert body["stop_type"] == "eos" and fits(json.loads(body["content"])), body["content"]


def test_a_chat_answer_fits_too(engine):
    messages = [{"role": "user", "content": "hello"}]
    assert set(json.loads(engine.chat(messages, json_schema=OPTIONAL, seed=1))) <= {"a", "b", "c"}


def test_optional_properties_are_sometimes_there_and_sometimes_not(engine):
    bodies = [engine.complete("x", json_schema=OPTIONAL, seed=seed, temperature=3.0) for seed in range(30)]
    assert {"a" in json.loads(body["content"]) for body in bodies} == {True, False}


def test_a_schema_without_limits_lets_any_json_through(engine):
    grammar = schema_to_grammar({})
    bodies = [
        engine.complete("x", grammar=grammar, seed=seed, temperature=2.0, max_tokens=120)
        for seed in range(30)
    ]
    kinds = {type(json.loads(body["content"])) for body in bodies if body["stop_type"] == "eos"}
    assert len(kinds) >= 3


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string", "pattern": "a+"}, "uses 'pattern', which cannot be enforced"),
        ({"type": "whole"}, "unknown type 'whole'"),
        ({"$ref": "#/$defs/none"}, "refers to '#/\\$defs/none', which is not in it"),
        ({"$ref": "https://example.org/x"}, "which is not in it"),
        ({"items": 3, "type": "array"}, "has 3 where a schema should be"),
    ],
)
def test_what_cannot_be_enforced_is_refused(schema, reason):
    with pytest.raises(EngineError, match=reason):
        schema_to_grammar(schema)


def test_a_schema_may_refer_to_itself():
    schema = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
    assert schema_to_grammar(schema).count("ref-0 ::=") == 1
