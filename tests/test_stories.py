"""Two real trained models: our decoder, run.c's arithmetic and llama.cpp agree on what comes next."""

import math
import re

import pytest
import torch
from test_convert import MODELS, Reference, converted, references, run  # noqa: F401 (two are fixtures)

from nightschool.attention import Documents
from nightschool.engine import Engine
from nightschool.gguf import TensorType, open_gguf
from nightschool.model import Model

STORIES = 40
BITS = {"stories3M-q80": (0.4, 0.8), "stories260K": (0.8, 1.25)}  # bits per byte that such models have


@pytest.fixture(scope="module")
def stories(shared):
    text = (shared / "text" / "tinystories_cased_0.9MB.txt").read_text(encoding="utf-8")
    whole = [story.strip() for story in re.split(r"(?<!\n)\n(?!\n)", text)]
    return [story for story in whole if 300 < len(story) < 1200][:STORIES]


def bits_per_byte(logits_of, tokens, stories):
    """All stories together, from the logits (T, vocabulary) of each."""
    nats = 0.0
    for ids in tokens:
        logs = logits_of(ids).log_softmax(-1)
        nats -= float(logs[:-1].gather(1, torch.tensor(ids)[1:, None]).sum())
    return nats / math.log(2) / sum(len(story.encode()) for story in stories)


def logits_of(model, ids):
    tokens = torch.tensor(ids)
    return model.logits(model.hidden(tokens, torch.arange(len(ids)), Documents.of([len(ids)])))


@pytest.mark.parametrize("name", MODELS)
def test_bits_per_byte_are_those_of_run_c(converted, references, stories, name):  # noqa: F811
    tokens = [references[name].encode(story) for story in stories]
    expected = bits_per_byte(references[name].logits, tokens, stories)
    assert BITS[name][0] < expected < BITS[name][1]
    file = open_gguf(converted[name])
    for precision, allowed in (("fp32", 1e-5), ("bf16", 0.005), ("int8", 0.01)):
        model = Model(file, precision)
        found = bits_per_byte(lambda ids, model=model: logits_of(model, ids), tokens, stories)
        assert found == pytest.approx(expected, rel=allowed), precision


@pytest.mark.parametrize(("type", "allowed"), [("F32", 0.002), ("Q8_0", 0.05), ("Q4_0", 0.05)])
@pytest.mark.parametrize("name", MODELS)
def test_next_token_probabilities_agree_with_llama_cpp(shared, tmp_path, stories, name, type, allowed):
    path = tmp_path / "story.gguf"
    tokens = shared / "models" / {"stories260K": "tok512.bin", "stories3M-q80": "tok4096.bin"}[name]
    run(shared / "models" / f"{name}.bin", path, type=TensorType[type], tokenizer=tokens)
    model = Model(open_gguf(path))
    with Engine(path) as engine:
        for story in stories[:4]:
            ids = engine.tokenize(story, add_special=True)[:200]
            mine = logits_of(model, ids).log_softmax(-1)
            for length in (2, 30, len(ids)):
                answer = engine.complete(ids[:length], max_tokens=1, n_probs=10, temperature=0.0)
                top = answer["completion_probabilities"][0]["top_logprobs"]
                row = mine[length - 1].exp()
                apart = sum(abs(math.exp(entry["logprob"]) - float(row[entry["id"]])) for entry in top) / 2
                assert apart < allowed  # total variation over the ten likeliest tokens
