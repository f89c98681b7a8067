"""/v1/completions: texts go on, and prompts get exact log-probabilities, held against the model."""

from collections.abc import Iterator

import openai
import psutil
import pytest
import torch
from serving import Serving, serving
from tiny import write_tiny, write_tiny_adapter

from nightschool.adapters import load_weights
from nightschool.engine import Engine
from nightschool.gguf import open_gguf
from nightschool.hub import find_base
from nightschool.lora import stacked
from nightschool.model import Model
from nightschool.scoring import batch_of

TEXT = "Hannah lives in the red house, café and all."


@pytest.fixture(scope="module", autouse=True)
def home(module_home):
    """One home for the module, with a base of another kind and an adapter for it."""
    (module_home / "models").mkdir()
    base = write_tiny(module_home / "models" / "tiny.gguf", "llama")  # a file there has its name at once
    loud = module_home / "adapters" / "loud"
    loud.mkdir(parents=True)
    write_tiny_adapter(loud / "adapter.gguf", base, seed=1)
    (loud / "card.json").write_text("{}")
    return module_home


@pytest.fixture(scope="module")
def server(home) -> Iterator[Serving]:
    with serving() as server:
        yield server


def complete(client, prompt, model="ember", **changes):
    return client.completions.create(model=model, prompt=prompt, **changes)


def direct(base: str, tokens: list[int], pairs=None) -> torch.Tensor:
    """Log-probabilities of the whole vocabulary after each of `tokens`: (T, V), in double precision."""
    model = Model(open_gguf(find_base(base).path), "fp64")
    with torch.no_grad():
        return torch.log_softmax(model.logits(model.read(batch_of([tokens]), pairs)), dim=-1)


def tokens_of(base: str, text: str, *, special: bool = False) -> list[int]:
    with Engine(find_base(base).path) as engine:
        return engine.tokenize(text, add_special=special)


def test_a_text_goes_on_as_the_engine_says(client):
    with Engine(find_base("ember").path) as engine:
        expected = engine.complete("Hannah lives", temperature=0.0, max_tokens=8)["content"]
    answer = complete(client, "Hannah lives", temperature=0, max_tokens=8)
    assert answer.choices[0].text == expected and answer.id.startswith("cmpl-")
    assert answer.object == "text_completion" and answer.usage.completion_tokens == 8
    streamed = complete(client, "Hannah lives", temperature=0, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected
    echoed = complete(client, "Hannah lives", temperature=0, max_tokens=8, echo=True)
    assert echoed.choices[0].text == "Hannah lives" + expected


@pytest.mark.parametrize("as_ids", [False, True])
def test_a_prompts_log_probabilities_are_those_of_a_direct_computation(client, as_ids):
    tokens = tokens_of("ember", TEXT)
    prompt = tokens if as_ids else TEXT
    choice = complete(client, prompt, max_tokens=0, echo=True, logprobs=3).choices[0]
    assert choice.text == TEXT and choice.finish_reason == "length"
    expected = direct("ember", tokens)
    told = choice.logprobs
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    picked = expected[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    assert told.token_logprobs[1:] == pytest.approx(picked.tolist(), abs=1e-4)
    best = expected[:-1].topk(3).values.tolist()
    for candidates, values in zip(told.top_logprobs[1:], best, strict=True):
        assert sorted(candidates.values(), reverse=True)[:3] == pytest.approx(values, abs=1e-4)
    assert len(told.tokens) == len(tokens) == len(told.text_offset)
    for token, start in zip(told.tokens, told.text_offset, strict=True):
        assert token.startswith("bytes:") or TEXT[start:].startswith(token)


def test_adapters_take_part_and_what_a_model_puts_before_a_text_is_counted_but_not_listed(client):
    text = "the stone and the sea"
    bare, full = tokens_of("tiny", text), tokens_of("tiny", text, special=True)
    assert len(full) == len(bare) + 1
    lora = load_weights(find_base("tiny").path.parents[1] / "adapters" / "loud")
    pairs = stacked([(lora.weights, lora.alpha, 0.5)], dtype=torch.float64)
    for model, expected in (("tiny", direct("tiny", full)), ("tiny+loud@0.5", direct("tiny", full, pairs))):
        told = complete(client, text, model, max_tokens=0, echo=True, logprobs=1).choices[0].logprobs
        picked = expected[:-1].gather(1, torch.tensor(bare)[:, None])[:, 0].tolist()
        assert told.token_logprobs == pytest.approx(picked, abs=1e-4)
        assert told.text_offset[0] == 0 and len(told.tokens) == len(bare)


def test_one_token_more_as_evaluation_programs_ask_for_it(client):
    """lm-evaluation-harness: token ids, echo, max_tokens 1; the last entry is cut off, the top compared."""
    context, continuations = "Hannah lives in the", [" red house", " house of ginger", "?!"]
    start = len(tokens_of("ember", context))
    prompts = [tokens_of("ember", context + each) for each in continuations]
    answer = complete(client, prompts, max_tokens=1, temperature=0, echo=True, logprobs=1, seed=1234)
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        told = choice.logprobs
        assert len(told.token_logprobs) == len(prompt) + 1
        expected = direct("ember", prompt)
        score = float(sum(expected[at - 1, prompt[at]] for at in range(start, len(prompt))))
        assert sum(told.token_logprobs[start:-1]) == pytest.approx(score, abs=1e-3)
        is_greedy = all(int(expected[at - 1].argmax()) == prompt[at] for at in range(start, len(prompt)))
        told_greedy = all(
            token == max(top, key=top.get)
            for token, top in zip(told.tokens[start:-1], told.top_logprobs[start:-1], strict=True)
        )
        assert told_greedy == is_greedy
        assert told.token_logprobs[-1] == pytest.approx(float(expected[-1].max()), abs=1e-4)


def test_what_is_written_after_an_echo_has_the_engines_log_probabilities(client):
    with Engine(find_base("ember").path) as engine:
        found = engine.complete("Hannah lives", temperature=0.0, max_tokens=4, n_probs=2)
    expected = [each["logprob"] for each in found["completion_probabilities"]]
    prompt = len(tokens_of("ember", "Hannah lives"))
    for stream in (False, True):
        answer = complete(
            client, "Hannah lives", temperature=0, max_tokens=4, echo=True, logprobs=2, stream=stream
        )
        choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
        text = "".join(choice.text for choice in choices)
        told = [choice.logprobs for choice in choices if choice.logprobs]
        logprobs = [value for each in told for value in each.token_logprobs]
        assert logprobs[prompt:] == pytest.approx(expected, abs=1e-3)
        tokens = [token for each in told for token in each.tokens]
        starts = [start for each in told for start in each.text_offset]
        assert all(text[start:].startswith(token) for token, start in zip(tokens, starts, strict=True))


def test_several_prompts_with_several_choices_each(client):
    answer = complete(client, ["Hannah", "The house"], n=2, seed=1, temperature=1.2, max_tokens=6, echo=True)
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(text.startswith("Hannah") for text in texts[:2]) and texts[0] != texts[1]
    assert all(text.startswith("The house") for text in texts[2:])


def test_a_scoring_process_that_was_killed_is_started_again(client, server):
    asked = {"max_tokens": 0, "echo": True, "logprobs": 1}
    before = complete(client, "Hannah", **asked).choices[0].logprobs
    process = psutil.Process(server.state.scores._process.pid)
    process.kill()
    process.wait()
    assert complete(client, "Hannah", **asked).choices[0].logprobs == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": [10**6]}, "There is no token 1000000"),
        ({"prompt": [[1], [10**6]]}, "There is no token 1000000"),
        ({"prompt": []}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 99}, "logprobs"),
        ({"prompt": [5] * 1200, "echo": True, "logprobs": 1}, "the model holds 1,024"),
    ],
)
def test_what_cannot_be_done_is_refused(client, changes, reason):
    with pytest.raises(openai.BadRequestError, match=reason):
        complete(client, **({"prompt": "Hannah"} | changes))
