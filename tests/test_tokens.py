"""Texts as tokens over HTTP: the engine's own, under the routes that evaluation programs know."""

import httpx
from tiny import write_tiny

from nightschool.engine import Engine
from nightschool.hub import find_base, register

TEXTS = ["The boat is red.", "", "Ünïcode – “yes”\n\n  spaces", "<|im_end|>"]


def post(server, path, **body):
    return httpx.post(server.url + path, json=body, trust_env=False)


def test_tokens_are_the_engines_and_lead_back_to_the_text(server, tmp_path):
    register(write_tiny(tmp_path / "tiny.gguf", "llama"), "tiny")
    for name in ("ember", "tiny"):
        with Engine(find_base(name).path) as engine:
            for text in TEXTS:
                bare = post(server, "/tokenize", model=name, prompt=text, add_special_tokens=False).json()
                assert bare["tokens"] == engine.tokenize(text)
                assert bare["count"] == len(bare["tokens"])
                whole = post(server, "/tokenize", model=name, prompt=text).json()
                assert whole["tokens"] == engine.tokenize(text, add_special=True)
                back = post(server, "/detokenize", model=name, tokens=bare["tokens"]).json()
                assert back["prompt"] == engine.detokenize(bare["tokens"])
    assert post(server, "/tokenize", prompt="a").json()["max_model_len"] == 1024


def test_a_vocabulary_is_described(server):
    info = httpx.get(server.url + "/tokenizer_info", trust_env=False).json()
    assert info["vocab_size"] == 6144
    assert post(server, "/tokenize", prompt=info["eos_token"], add_special_tokens=False).json()["count"] == 1
    assert "{%" in info["chat_template"]


def test_what_is_no_token_and_no_model_is_refused(server):
    assert post(server, "/detokenize", tokens=[6144]).status_code == 400
    assert post(server, "/detokenize", tokens=[-1]).status_code == 400
    assert post(server, "/tokenize", prompt="a", model="nothing").status_code == 404
    assert post(server, "/tokenize").status_code == 400
