"""A JSON schema as a grammar that llama.cpp enforces while it writes (GBNF).

llama.cpp can convert schemas itself, but some of its builds, the one we ship with among them, hand them to
another library (llguidance) that fails with SentencePiece vocabularies: the answer is then silently
unconstrained, or the request refused. A GBNF grammar is kept by every build.

Covers: object (required and optional properties, in their order), array, string with lengths, number,
integer, boolean, null, enum, const, anyOf, oneOf, lists of types, $ref into the same schema. Named
properties are the only ones. A keyword that would have to be ignored is an error. Format: llama.cpp,
grammars/README.md.
"""

import json
from collections.abc import Mapping
from typing import Any

from nightschool.errors import EngineError

FREE = {
    "ws": '" "?',
    "value": "free-object | free-array | string | number | boolean | null",
    "free-object": '"{" ( string ":" ws value ( "," ws string ":" ws value )* )? "}"',
    "free-array": '"[" ( value ( "," ws value )* )? "]"',
    "string": '"\\"" char* "\\""',
    "char": '[^"\\\\\\x00-\\x1F\\x7F] | "\\\\" ( ["\\\\/bfnrt] | "u" [0-9a-fA-F]{4} )',
    "integer": '"-"? ( "0" | [1-9] [0-9]{0,15} )',
    "number": 'integer ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,3} )?',
    "boolean": '"true" | "false"',
    "null": '"null"',
}
NOTES = {
    *("$schema", "$id", "$defs", "definitions", "title", "description", "default", "examples"),
    *("format", "deprecated", "readOnly", "writeOnly", "$comment"),
}
KNOWN = NOTES | {
    *("type", "enum", "const", "anyOf", "oneOf", "$ref", "items", "minItems", "maxItems"),
    *("properties", "required", "additionalProperties", "minLength", "maxLength"),
}


def schema_to_grammar(schema: Mapping[str, Any]) -> str:
    """GBNF for the JSON texts that fit `schema`. Raises EngineError for a keyword that it cannot enforce."""
    return _Grammar(schema).text()


class _Grammar:
    """Collects named rules; each method returns an expression that may name them."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.root = schema
        self.rules: dict[str, str] = {}
        self.references: dict[str, str] = {}

    def text(self) -> str:
        rules = {"root": self.expression(self.root), **self.rules, **FREE}
        return "".join(f"{name} ::= {expression}\n" for name, expression in rules.items())

    def rule(self, expression: str) -> str:
        name = f"rule-{len(self.rules)}"
        self.rules[name] = expression
        return name

    def expression(self, schema: Mapping[str, Any] | bool) -> str:
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise EngineError(f"The JSON schema has {schema!r} where a schema should be.")
        if unknown := set(schema) - KNOWN:
            raise EngineError(f"The JSON schema uses {sorted(unknown)[0]!r}, which cannot be enforced.")
        for key, convert in (("$ref", self.reference), ("const", _literal)):
            if key in schema:
                return convert(schema[key])
        for key, each in (("enum", _literal), ("anyOf", self.expression), ("oneOf", self.expression)):
            if key in schema:
                return "( " + " | ".join(each(choice) for choice in schema[key]) + " )"
        return self.typed(schema, schema.get("type", _guessed_type(schema)))

    def typed(self, schema: Mapping[str, Any], type: Any) -> str:
        if isinstance(type, list):
            return "( " + " | ".join(self.typed(schema, each) for each in type) + " )"
        if type == "object" and "properties" in schema:
            return self.object(schema["properties"], required=schema.get("required", []))
        if type == "array":
            return self.array(schema)
        if type == "string":
            return _string(schema)
        if type in ("object", "number", "integer", "boolean", "null", "value"):
            return "free-object" if type == "object" else str(type)
        raise EngineError(f"The JSON schema names the unknown type {type!r}.")

    def reference(self, pointer: str) -> str:
        if pointer not in self.references:
            target: Any = self.root
            for part in pointer.removeprefix("#").strip("/").split("/") if pointer != "#" else []:
                target = target.get(part.replace("~1", "/").replace("~0", "~"), {}) if target else {}
            if not pointer.startswith("#") or not target:
                raise EngineError(f"The JSON schema refers to {pointer!r}, which is not in it.")
            self.references[pointer] = f"ref-{len(self.references)}"
            self.rules[self.references[pointer]] = ""  # known before it is written: it may refer to itself
            self.rules[self.references[pointer]] = self.expression(target)
        return self.references[pointer]

    def object(self, properties: Mapping[str, Any], *, required: list[str]) -> str:
        """One rule for "what may follow" after each property, with and without a comma before it."""
        members = [
            f'{_literal(name)} ":" ws {self.expression(schema)}' for name, schema in properties.items()
        ]
        with_comma = without_comma = '""'
        for name, member in reversed(list(zip(properties, members, strict=True))):
            after = self.rule(with_comma)
            options = [f'"," ws {member} {after}', f"{member} {after}"]
            if name not in required:
                options = [
                    f"{options[0]} | {after}",
                    f"{options[1]} | {self.rule(without_comma)}",
                ]
            with_comma, without_comma = options
        return f'"{{" {self.rule(without_comma)} "}}"'

    def array(self, schema: Mapping[str, Any]) -> str:
        item = self.rule(self.expression(schema.get("items", True)))
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[" "]"'
        more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        some = f'{item} ( "," ws {item} ){more}'
        return f'"[" {some if least else f"( {some} )?"} "]"'


def _guessed_type(schema: Mapping[str, Any]) -> str:
    return "object" if "properties" in schema else "array" if "items" in schema else "value"


def _string(schema: Mapping[str, Any]) -> str:
    if not {"minLength", "maxLength"} & set(schema):
        return "string"
    return f'"\\"" char{{{schema.get("minLength", 0)},{schema.get("maxLength", "")}}} "\\""'


def _literal(value: Any) -> str:
    """The JSON of a value as a GBNF string."""
    text = json.dumps(value, ensure_ascii=False)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
