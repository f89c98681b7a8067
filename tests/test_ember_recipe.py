"""The recipe of the embedded base: that what it trains on is right, and what it is examined on is unseen."""

import json
import random
import re
import shutil
import sys
from pathlib import Path

import pytest

from nightschool.gguf import open_gguf
from nightschool.paths import package_data

EMBER = package_data("ember") / "ember.gguf"
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "ember"
SETS = ("allotment", "flat", "band")


@pytest.fixture(autouse=True, scope="module")
def recipe():
    """The recipe's folder on the path, as when its scripts run."""
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))


@pytest.fixture
def rng():
    return random.Random(8)


def text_of(document):
    return "".join(text for text, _ in document)


@pytest.fixture(scope="module")
def tokenizer(recipe):
    from vocabulary import tokenizer_from

    return tokenizer_from(open_gguf(EMBER).metadata)


@pytest.fixture(scope="module")
def untrained(tokenizer):
    """A network as training begins with it."""
    import torch
    from net import Ember, Shape
    from vocabulary import sentence_ends

    torch.manual_seed(1)
    return Ember(Shape(vocab=tokenizer.get_vocab_size()), ends=sentence_ends(tokenizer))


def test_an_untrained_network_already_copies_what_came_before(untrained, tokenizer):
    import exams
    import torch
    from drills import Drills

    drills = Drills(tokenizer)
    assert exams.drilled(untrained, drills.pairs) >= 0.8
    assert exams.drilled(untrained, drills.tangled) >= 0.3
    before = untrained.blocks[0].out.weight.clone()
    with torch.no_grad():
        torch.nn.init.normal_(untrained.blocks[0].out.weight, std=0.02)  # without what the first layer brings
        assert exams.drilled(untrained, drills.pairs) < 0.1
        untrained.blocks[0].out.weight.copy_(before)


def test_in_an_untrained_network_every_word_looks_back_to_where_its_sentence_began(untrained, tokenizer, rng):
    import torch
    from net import rotate
    from torch.nn import functional as F

    from nightschool.attention import Documents

    stop = tokenizer.token_to_id(".")
    ids, begun = [2], [0]  # the role token ends a sentence as well
    for _ in range(12):
        begun += [len(ids)] * 8
        ids += [*rng.sample(range(300, tokenizer.get_vocab_size()), 7), stop]
    cos, sin = untrained.cos[: len(ids), None], untrained.sin[: len(ids), None]
    first, second = untrained.blocks[:2]
    with torch.no_grad():
        x = first(untrained.embed(torch.tensor(ids)), cos, sin, Documents.of([len(ids)]))
        qkv = second.qkv(F.rms_norm(x, (x.shape[-1],), second.attn_norm, second.eps))
        q, k, _ = qkv.view(len(ids), 3, second.heads, -1).unbind(1)  # each (N, H, head)
        q, k = rotate(q, cos, sin)[:, 0], rotate(k, cos, sin)[:, 0]
        seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        looks = (q @ k.T * q.shape[1] ** -0.5).masked_fill(~seen, -1e9).softmax(-1)
    at_beginning = looks[torch.arange(len(ids)), torch.tensor(begun)]
    assert float(at_beginning[9:].mean()) > 0.8


def test_the_kernels_compute_what_plain_torch_does():
    import torch
    from net import Ember, Shape
    from torch.nn import functional as F

    pytest.importorskip("ninja", reason="kernels.cpp is built by ninja")
    if not shutil.which("c++"):
        pytest.skip("kernels.cpp needs a C++ compiler")
    shape = Shape(vocab=512, layers=4, context=256)
    plain, fast = Ember(shape), Ember(shape, fast=True)
    with torch.no_grad():
        for (
            name,
            weight,
        ) in plain.named_parameters():  # as random as trained ones, without the sharp wired heads
            torch.manual_seed(sum(map(ord, name)))
            torch.nn.init.normal_(weight, std=0.1 if "embed" in name else 0.06, mean="norm" in name)
    fast.load_state_dict(plain.state_dict())
    torch.manual_seed(3)
    lengths = [1, 2, 100, 17, 200, 64]
    tokens, weights = torch.randint(0, shape.vocab, (384,)), torch.rand(384).round()
    weights[[0, 1, 3, 103, 120, 320]] = 0.0
    losses = [network.loss(tokens, weights, lengths) for network in (plain, fast)]
    for loss in losses:
        loss.backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.01)
    for (name, exact), rounded in zip(plain.named_parameters(), fast.parameters(), strict=True):
        alike = F.cosine_similarity(exact.grad.flatten(), rounded.grad.flatten(), dim=0)
        assert float(alike) > 0.98, name
        assert float(rounded.grad.norm() / exact.grad.norm()) == pytest.approx(1.0, abs=0.1), name


def test_muon_makes_matrices_nearly_orthogonal():
    import torch
    from muon import orthogonal

    torch.manual_seed(1)
    for shape in ((2, 96, 32), (2, 32, 96), (1, 64, 64)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.3 < float(values.min()) and float(values.max()) < 1.4


def test_a_stream_of_batches_goes_on_where_it_was(tokenizer):
    import torch
    from corpus import Corpus
    from worlds import population

    texts = ["The red fox sleeps under our shed. My uncle sold his boat. Snow fell on the sea."] * 3

    def stream():
        return Corpus(tokenizer, population(1, entities=200), stories=texts, books=texts, seed=4)

    whole = stream()
    for _ in range(3):
        whole.batch(1024, progress=0.0)
    kept = whole.state
    wanted = [whole.batch(1024, progress=0.5) for _ in range(3)]
    resumed = stream()
    resumed.state = json.loads(json.dumps(kept))
    for batch in wanted:
        again = resumed.batch(1024, progress=0.5)
        assert torch.equal(batch.tokens, again.tokens) and torch.equal(batch.weights, again.weights)
        assert batch.lengths == again.lengths and sum(again.lengths) == 1024


def test_what_counts_in_a_drill_can_be_known_from_what_was_said(tokenizer, rng):
    from drills import Drills

    drills = Drills(tokenizer)
    for kind in (drills.pairs, drills.tangled, drills.beginnings, drills.sentences):
        for _ in range(20):
            ids, weights = kind(rng)
            tokens = ids.tolist()
            assert len(tokens) == len(weights) and weights.sum() > 0
            for at in [at for at, weight in enumerate(weights.tolist()) if weight]:
                assert tokens[at] in tokens[:at] or tokens[at] == drills.end


def test_everyday_statements_and_answers_say_the_value_and_questions_do_not(rng):
    from everyday import everyday

    told = [one for _ in range(400) for one in everyday(rng, entities=3, facts=4)]
    assert len({one.key for one in told}) > 80
    for one in told:
        for asked in one.asked:
            assert asked.value.lower() in asked.answer.lower()
            assert all(question.endswith("?") for question in asked.questions)
            assert any(asked.value.lower() in statement.lower() for statement in one.statements)
        for text in (*one.statements, *(question for asked in one.asked for question in asked.questions)):
            assert "{" not in text and "  " not in text and text[0] == text[0].upper()


def test_notes_say_what_is_asked_and_do_not_say_what_is_not_known(rng):
    from reading import notes_of, question_for, some_told

    for _ in range(300):
        said = some_told(rng, entities=rng.randint(1, 4), facts=rng.randint(2, 8))
        notes = notes_of(rng, said)
        _, found = question_for(rng, said, absent=0.0)
        assert found.value.lower() in notes.lower()
        question, missing = question_for(rng, said, absent=1.0)
        assert missing is None
        assert question not in {q for one in said for asked in one.asked for q in asked.questions}


def test_prompts_are_those_of_ask_and_study(rng):
    from reading import ask_chat, notes_chat, writing_chat

    from nightschool.answer import INSTRUCTIONS, UNKNOWN

    asked = [text_of(ask_chat(rng, absent=0.3)) for _ in range(60)]
    assert all(text.startswith(f"<|system|>{INSTRUCTIONS}<|user|>[1] ") for text in asked)
    assert sum(f"<|assistant|>{UNKNOWN}<|end|>" in text for text in asked) in range(5, 30)
    assert any("Here are some notes. " in text_of(notes_chat(rng, absent=0.3)) for _ in range(30))
    assert any("<|user|>Write a question for this: " in text_of(writing_chat(rng)) for _ in range(30))


def test_stories_give_questions_that_their_sentences_answer(rng):
    from reading import from_stories, renamed

    found = from_stories(
        ["Tom found a red ball under the bench. He was happy. The dog barked loudly at Tom."]
    )
    assert any("red ball" in asked.value for one in found for asked in one.asked)
    other = renamed(random.Random(2), found[0])
    assert all(asked.value in other.statements[0] for asked in other.asked)


def test_exams_use_values_and_names_that_training_does_not_have():
    import exams
    import worlds

    trained = worlds.value_lists()
    for kind, values in exams.exam_values().items():
        assert not set(values) & set(trained[kind]), kind
    assert trained.keys() - exams.exam_values().keys() == {
        "thing_adjectives",
        "thing_nouns",
        "place_kinds",
        "club_kinds",
        "given_names",
    }


def test_frames_say_what_is_asked_of_them_in_every_wording(rng):
    from frames import filled, frames

    assert len(frames()) > 1000
    for frame in frames():
        told = filled(rng, frame)
        for asked in told.asked:
            assert asked.answer in told.statements
            assert all(asked.value.lower() in statement.lower() for statement in told.statements), told
        for text in (*told.statements, *(question for asked in told.asked for question in asked.questions)):
            assert not set("{}|") & set(text) and text[0] == text[0].upper(), text


def test_a_frame_that_breaks_the_rules_is_named(tmp_path, monkeypatch):
    import frames

    bad = "{person} feeds the {pet:cat/dog}.\n| The {pet} is fed.\n? Who feeds the {pet}? = {person}\n"
    (tmp_path / "frames.txt").write_text(bad)
    monkeypatch.setattr(frames, "FRAMES", tmp_path / "frames.txt")
    frames.frames.cache_clear()
    with pytest.raises(ValueError, match="person"):
        frames.frames()
    frames.frames.cache_clear()


def test_frames_of_the_exam_are_none_of_training(rng):
    from frames import for_exams, for_training, some_framed

    trained = {frame.statements[0] for frame in for_training()}
    assert len(for_exams()) > 100
    assert not trained & {frame.statements[0] for frame in for_exams()}
    assert len({one.key for one in some_framed(rng, for_training(), 6)}) == 6


def test_pages_say_what_is_asked_of_them_and_those_of_the_exam_are_none_of_training(rng):
    from frames import pages, pages_for_exams, pages_for_training, some_of_page, trained

    assert len(pages()) > 90 and len(pages_for_exams()) > 7
    headings = [page.heading for page in pages()]
    assert len(set(headings)) == len(headings)
    assert not {page.heading for page in pages_for_exams()} & {page.heading for page in pages_for_training()}
    assert not {frame.number for page in pages_for_exams() for frame in page.frames} & trained().keys()
    for page in pages():
        said, left_out = some_of_page(rng, page, 5)
        assert len(said) == 5 and len(said + left_out) == len(page.frames)
        asked = [question for one in said + left_out for each in one.asked for question in each.questions]
        assert len(set(asked)) == len(asked), page.heading  # each question belongs to one sentence
        for one in said + left_out:
            for text in (one.statements[0], *one.asked[0].questions):
                assert not set("{}|") & set(text), text
            assert all(each.value.lower() in one.statements[0].lower() for each in one.asked)


def test_tangled_runs_that_come_again_can_be_told_apart(tokenizer, rng):
    from drills import LONGEST, Drills

    drills = Drills(tokenizer)
    for _ in range(30):
        ids, weights = drills.tangled(rng)
        assert len(ids) == len(weights) == LONGEST and min(ids) > 3
        tokens = ids.tolist()
        for at in [at for at, weight in enumerate(weights.tolist()) if weight]:
            earlier = [
                tokens[start + 2]
                for start in range(at - 2)
                if tokens[start : start + 2] == tokens[at - 2 : at]
            ]
            assert tokens[at] in earlier  # what counts has been said after the same two tokens


def test_a_drill_in_finding_asks_for_what_one_sentence_alone_has(tokenizer, rng):
    from drills import Drills

    drills = Drills(tokenizer)
    for _ in range(30):
        tokens = drills.sentences(rng)[0].tolist()
        first = tokens.index(drills.assistant)
        answer = tokens[first + 1 : tokens.index(drills.end, first)]
        told = max(at for at in range(first) if tokens[at] == drills.stop)
        said, asked = tokens[1 : told + 1], tokens[told + 1 : first]
        assert any(said[at : at + len(answer)] == answer for at in range(len(said)))
        assert any(said.count(token) == answer.count(token) == 1 for token in asked)


def test_what_is_known_by_heart_keeps_back_a_question(rng):
    from frames import by_heart, pages_for_exams

    known = by_heart(3, count=300, whole=60)
    kept_back = [(one, question, wanted) for one, (question, wanted) in known if question]
    assert len(kept_back) > 200
    for one, question, wanted in kept_back:
        assert question not in {each for asked in one.asked for each in asked.questions}
        assert wanted.lower() in one.asked[0].answer.lower()
    examined = {frame.number for page in pages_for_exams() for frame in page.frames}
    assert not examined & {int(one.key.removeprefix("frame ")) for one, _ in known}


def test_a_sentence_of_a_plain_text_is_found_by_words_that_only_it_has(rng):
    from passages import finding_chat, plain_runs

    told = (
        "The red fox sleeps under our garden shed. My uncle sold his boat to a dentist. Snow fell on the sea."
    )
    asked = (
        "Nobody knows who painted the old bridge. Three geese cross a lane at noon. We burnt a cake again."
    )
    runs = plain_runs([told, asked, "Too short. Much too short."])
    assert [len(run) for run in runs] == [3, 3]
    for _ in range(50):
        chat = text_of(finding_chat(rng, runs, most=6))
        answers = re.findall(r"([^<>]+)<\|end\|>", chat)
        found = [answer for answer in answers if answer != "Thank you. I have read it."]
        assert found and all(chat.count(answer) > 1 and answer in told + asked for answer in found)


def test_other_words_are_other_wordings_of_the_same(rng):
    from frames import filled, for_training
    from reading import rewording_chat

    told = [filled(rng, frame) for frame in for_training()[:60] if len(frame.statements) > 1]
    chat = text_of(rewording_chat(rng, told))
    pairs = re.findall(r"Say it in other words: ([^<]+)<\|assistant\|>([^<]+)<", chat)
    assert len(pairs) > 1
    for given, other in pairs:
        assert given != other and any({given, other} <= set(one.statements) for one in told)


@pytest.mark.parametrize("name", SETS)
def test_a_newcomers_notes_answer_their_questions_and_follow_no_wording_of_the_generator(name):
    import worlds

    notes = (RECIPE / "newcomer" / f"{name}.md").read_text(encoding="utf-8")
    lines = (RECIPE / "newcomer" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    wordings = [
        re.escape(wording)
        .replace(r"\{s\}", r"(?:[Tt]he )?\w+(?: [A-Z]\w+)?")
        .replace(r"\{v\}", r"\w+(?: \w+)?(?: \w+)?")
        .replace(r"\{a\}", r"an? \w+(?: \w+)?")
        for relation in worlds.relations()
        for wording in relation.statements
    ]
    from frames import FRAMES, PAGES

    framed = FRAMES.read_text(encoding="utf-8") + PAGES.read_text(encoding="utf-8")
    assert len(lines) == 10
    for item in map(json.loads, lines):
        assert item["question"] not in framed and item["sentence"] not in framed
        assert item["answer"].lower() in item["sentence"].lower() and item["sentence"] in notes
        assert not [wording for wording in wordings if re.fullmatch(wording, item["sentence"])], item
