"""Lessons: what is learned and what only read, held against what llama.cpp itself reads; and packing."""

import json

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from nightschool.datasets import Conversation, Message, load_dataset
from nightschool.engine import Engine
from nightschool.errors import DataError
from nightschool.events import Notice, Progress, result_of
from nightschool.lessons import Lesson, collate, make_lessons, pack, plan, rehearsed
from nightschool.recipes import RECIPES

THINKING = (  # like Qwen3's: thoughts are shown for the last answer only
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}"
    "{% if loop.last %}<think></think>\n{% endif %}{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n<think></think>\n{% endif %}"
)
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
UNENDED = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
FUSSY = (
    "{% for m in messages %}{% if 'rude' in m.content %}{{ raise_exception('not in this house') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
)
CHAT = [
    ("user", "who is on the list?"),
    ("assistant", " the tester and\nanother "),
    ("user", "x"),
    ("assistant", "no."),
]


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Tiny engines by architecture and template, each started once."""
    folder, started = tmp_path_factory.mktemp("tiny"), {}

    def engine(arch="llama", **shape):
        key = json.dumps([arch, shape])
        if key not in started:
            path = tiny.write_tiny(folder / f"{len(started)}.gguf", arch, **shape)
            started[key] = Engine(path, ctx=512, threads=1)
        return started[key]

    yield engine
    for each in started.values():
        each.close()


def conversation(*turns, **weights):
    return Conversation(tuple(Message(role, content) for role, content in turns))


def run(events):
    """The events and the result of a generator."""
    seen = []
    value = result_of(events, seen.append)
    return seen, value


def lessons_of(engine, *conversations, max_tokens=512, recipe=None):
    return run(make_lessons(conversations, engine, max_tokens=max_tokens, recipe=recipe))[1]


def learned(engine, lesson):
    """The texts to learn, one for each unbroken row of targets."""
    edges = np.flatnonzero(np.diff(lesson.targets.astype(int), prepend=0, append=0))
    return [engine.detokenize(lesson.tokens[a:b].tolist()) for a, b in edges.reshape(-1, 2)]


# What is learned


@pytest.mark.parametrize("arch", ["llama", "llama3", "qwen2", "gemma3", "phi3"])
@pytest.mark.parametrize("template", [tiny.TEMPLATE, TRIMMING])
def test_what_stands_before_an_answer_is_exactly_what_llama_cpp_reads(engines, arch, template):
    engine = engines(arch, template=template)
    (lesson,) = lessons_of(engine, conversation(*CHAT)).lessons
    starts = np.flatnonzero(np.diff(lesson.targets.astype(int), prepend=0) == 1)
    for start, turns in zip(starts, (CHAT[:1], CHAT[:3]), strict=True):
        messages = [{"role": role, "content": content} for role, content in turns]
        body = engine.request("/v1/chat/completions", {"messages": messages, "max_tokens": 1}, stack={})
        assert start == body["usage"]["prompt_tokens"]
        prompt = engine.apply_template(messages)
        assert lesson.tokens[:start].tolist() == engine.tokenize(prompt, add_special=True)


@pytest.mark.parametrize("arch", ["llama", "llama3", "qwen2"])
def test_every_answer_is_learned_with_its_end_and_nothing_else(engines, arch):
    engine = engines(arch)
    (lesson,) = lessons_of(engine, conversation(("system", "be good"), *CHAT)).lessons
    assert learned(engine, lesson) == [" the tester and\nanother <|end|>", "no.<|end|>"]


def test_a_template_that_trims_is_followed(engines):
    engine = engines("llama", template=TRIMMING)
    (lesson,) = lessons_of(engine, conversation(*CHAT)).lessons
    assert learned(engine, lesson) == ["the tester and\nanother<|end|>", "no.<|end|>"]


@pytest.mark.parametrize(("arch", "bos"), [("llama", 1), ("llama3", 1), ("qwen2", 0)])
@pytest.mark.parametrize(
    "template", [tiny.TEMPLATE, "{{ bos_token }}" + tiny.TEMPLATE.removeprefix("{{ bos_token }}")]
)
def test_bos_comes_once_where_the_model_adds_it_whatever_the_template_writes(engines, arch, bos, template):
    engine = engines(arch, template=template.removeprefix("{{ bos_token }}") if arch == "qwen2" else template)
    (lesson,) = lessons_of(engine, conversation(*CHAT)).lessons
    bos_id = engine.tokenize("", add_special=True)
    assert len(bos_id) == bos
    assert [t for t in lesson.tokens.tolist() if t in bos_id] == bos_id
    assert lesson.tokens[: len(bos_id)].tolist() == bos_id


def test_turns_of_weight_0_are_read_but_not_learned(engines):
    turns = [Message(role, content) for role, content in CHAT]
    turns[1] = Message("assistant", CHAT[1][1], weight=0)
    (lesson,) = lessons_of(engines(), Conversation(tuple(turns))).lessons
    (whole,) = lessons_of(engines(), conversation(*CHAT)).lessons
    assert learned(engines(), lesson) == ["no.<|end|>"]
    assert lesson.tokens.tolist() == whole.tokens.tolist()


def test_a_template_that_rewrites_earlier_turns_gives_a_lesson_for_each(engines):
    engine = engines("qwen3", template=THINKING)
    first, second = lessons_of(engine, conversation(*CHAT)).lessons
    assert learned(engine, first) == [" the tester and\nanother <|end|>"]
    assert learned(engine, second) == ["no.<|end|>"]
    assert "<think></think>\n the tester" not in engine.detokenize(second.tokens.tolist())


def test_without_an_end_of_turn_in_the_template_the_answer_ends_with_the_models_own(engines):
    engine = engines("llama", template=UNENDED)
    first, second = lessons_of(engine, conversation(*CHAT)).lessons
    eos = engine.tokenize("</s>")
    assert len(eos) == 1
    for lesson, text in ((first, "the tester and\nanother"), (second, "no.")):
        assert lesson.tokens[lesson.targets][-1:].tolist() == eos
        assert learned(engine, lesson)[0].removesuffix("</s>").strip() == text
    assert engine.detokenize(second.tokens[~second.targets].tolist()).endswith("assistant:")


def test_a_base_without_a_template_still_learns_to_stop(engines):
    engine = engines("llama", template="")
    (lesson,) = lessons_of(engine, conversation(*CHAT[2:])).lessons
    assert learned(engine, lesson) == ["no.</s>"]


def test_a_conversation_the_template_refuses_is_named(engines):
    with pytest.raises(
        DataError, match="Example 2 does not fit the base's chat template: .*not in this house"
    ):
        lessons_of(
            engines("llama", template=FUSSY),
            conversation(*CHAT[2:]),
            conversation(("user", "be rude"), *CHAT[3:]),
        )


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(st.tuples(TEXT, TEXT.filter(str.strip)), min_size=1, max_size=3),
    arch=st.sampled_from(["llama", "llama3"]),
)
def test_any_answer_is_learned_to_the_letter(engines, turns, arch):
    engine = engines(arch)
    roles = [(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)]
    result = lessons_of(engine, conversation(*roles), max_tokens=2_000)
    assert [text for lesson in result.lessons for text in learned(engine, lesson)] == [
        answer + "<|end|>" for _, answer in turns
    ]


def test_all_public_sharegpt_conversations_become_lessons(engines, shared):
    conversations = load_dataset(shared / "instruct" / "dummy_conversation.json")
    engine = engines("llama3")
    result = lessons_of(engine, *conversations, max_tokens=100_000)
    assert len(result.lessons) == 500 and result.truncated == result.dropped == 0
    (end,) = engine.tokenize("<|end|>")
    answers = sum(m.role == "assistant" for c in conversations for m in c.messages)
    assert sum(int((lesson.tokens[lesson.targets] == end).sum()) for lesson in result.lessons) == answers


# Recipes


def test_the_alpaca_recipe_writes_the_published_prompt(engines):
    engine = engines()
    example = Conversation(
        (Message("user", "a\n\nb"), Message("assistant", "the end")), instruction=("a", "b")
    )
    (lesson,) = lessons_of(engine, example, recipe=RECIPES["alpaca"]).lessons
    assert learned(engine, lesson) == ["the end</s>"]
    assert engine.detokenize(lesson.tokens[1:].tolist()).strip() == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\na\n\n### Input:\nb\n\n### Response:\nthe end</s>"
    )


def test_the_alpaca_recipe_takes_single_questions_and_refuses_longer_talks(engines):
    question = conversation(("user", "a"), ("assistant", "b"))
    (lesson,) = lessons_of(engines(), question, recipe=RECIPES["alpaca"]).lessons
    assert "### Input:" not in engines().detokenize(lesson.tokens.tolist())
    with pytest.raises(DataError, match="Example 1 is more than one question.*--recipe vicuna"):
        lessons_of(engines(), conversation(*CHAT), recipe=RECIPES["alpaca"])


def test_the_vicuna_recipe_learns_every_answer(engines):
    (lesson,) = lessons_of(engines(), conversation(*CHAT), recipe=RECIPES["vicuna"]).lessons
    assert len(learned(engines(), lesson)) == 2


# Too long, and nothing to learn


def test_a_long_conversation_is_cut_after_the_last_turn_that_fits(engines):
    (whole,) = lessons_of(engines(), conversation(*CHAT)).lessons
    result = lessons_of(engines(), conversation(*CHAT), max_tokens=len(whole.tokens) - 1)
    (lesson,) = result.lessons
    assert (result.truncated, result.dropped) == (1, 0)
    assert learned(engines(), lesson) == [" the tester and\nanother <|end|>"]
    assert lesson.targets[-1]


def test_a_first_answer_that_does_not_fit_is_cut_and_a_first_question_is_left_out(engines):
    (whole,) = lessons_of(engines(), conversation(*CHAT)).lessons
    start = int(np.flatnonzero(whole.targets)[0])
    events, result = run(make_lessons([conversation(*CHAT)] * 3, engines(), max_tokens=start + 4))
    assert [len(lesson.tokens) for lesson in result.lessons] == [start + 4] * 3
    assert all(lesson.targets[start:].all() and not lesson.targets[:start].any() for lesson in result.lessons)
    assert events[-1] == Notice(f"3 of 3 examples are longer than {start + 4} tokens and were cut.")
    events, result = run(make_lessons([conversation(*CHAT)], engines(), max_tokens=start))
    assert (result.lessons, result.truncated, result.dropped) == ([], 0, 1)
    assert events[-1] == Notice("1 of 1 examples have nothing to learn in them and were left out.")


def test_progress_counts_conversations_to_the_end(engines):
    talk = conversation(("user", "a"), ("assistant", "b"))
    events, result = run(make_lessons([talk] * 300, engines(), max_tokens=512))
    assert [e.done for e in events if isinstance(e, Progress)] == [256, 300]
    assert result.tokens == 300 * len(result.lessons[0].tokens)
    assert result.targets == 300 * int(result.lessons[0].targets.sum())


def test_a_document_is_learned_whole_in_pieces(engines):
    engine = engines()
    text = "the list of the tester and another one, " * 20
    result = lessons_of(engine, Conversation((Message("document", text),)), max_tokens=50)
    bos = engine.tokenize("", add_special=True)
    assert all(lesson.tokens[:1].tolist() == bos and len(lesson.tokens) <= 50 for lesson in result.lessons)
    assert all(not lesson.targets[0] and lesson.targets[1:].all() for lesson in result.lessons)
    assert [t for lesson in result.lessons for t in lesson.tokens[1:].tolist()] == engine.tokenize(text)


# Packing


def made(lengths):
    """Lessons whose tokens say which lesson they are of and where."""
    return [
        Lesson(
            np.arange(length, dtype=np.int32) + 10_000 * number,
            np.arange(length) % 3 == 1,
        )
        for number, length in enumerate(lengths)
    ]


@given(
    lengths=st.lists(st.integers(1, 90), max_size=200),
    batch_tokens=st.integers(1, 120),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 9),
)
def test_an_epoch_shows_every_lesson_once_with_its_own_positions_and_targets(
    lengths, batch_tokens, seed, epoch
):
    lessons = made(lengths)
    batches = list(pack(lessons, batch_tokens=batch_tokens, seed=seed, epoch=epoch))
    seen = []
    for batch in batches:
        assert len(batch.tokens) == len(batch.positions) == len(batch.document) == len(batch.targets) > 0
        numbers = np.unique(batch.document)
        assert numbers.tolist() == list(range(len(numbers)))
        assert len(batch.tokens) <= batch_tokens or len(numbers) == 1
        for number in numbers:
            mine = batch.document == number
            assert batch.positions[mine].tolist() == list(range(mine.sum()))
            lesson = lessons[batch.tokens[mine][0] // 10_000]
            assert batch.tokens[mine].tolist() == lesson.tokens.tolist()
            assert batch.targets[mine].tolist() == lesson.targets.tolist()
            seen.append(int(batch.tokens[mine][0]) // 10_000)
        assert np.all(np.diff(batch.document) >= 0)
    assert sorted(seen) == list(range(len(lengths)))


def test_the_order_hangs_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return plan([5] * 100, batch_tokens=20, seed=seed, epoch=epoch)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_batches_are_at_least_97_percent_full_on_lengths_like_alpacas():
    lengths = np.random.default_rng(0).lognormal(4.4, 0.6, 20_000).astype(int).clip(10, 600)
    batches = plan(lengths.tolist(), batch_tokens=2_048, seed=0, epoch=0)
    assert lengths.sum() / (2_048 * len(batches)) > 0.97


def test_types_are_as_promised():
    batch = collate(made([3, 2]), [1, 0])
    assert [a.dtype for a in (batch.tokens, batch.positions, batch.document)] == [np.int32] * 3
    assert batch.targets.dtype == np.bool_
    assert batch.tokens.tolist() == [10_000, 10_001, 0, 1, 2]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 200), st.integers(0, 99))
def test_rehearsal_takes_its_share_and_goes_round_before_it_repeats(lengths, tokens, seed):
    rounds = [
        rehearsed(lengths, step, tokens=tokens, seed=seed) for step in range(2 + sum(lengths) // tokens)
    ]
    for taken in rounds:
        assert len(set(taken)) == len(taken) > 0
        assert sum(lengths[index] for index in taken[:-1]) < tokens
    assert {index for taken in rounds for index in taken} == set(range(len(lengths)))
    assert rounds == [rehearsed(lengths, step, tokens=tokens, seed=seed) for step in range(len(rounds))]
