"""The recipe of the embedded base: that what it trains on is right, and what it is examined on is unseen."""

import json
import random
import re
import sys
from pathlib import Path

import pytest

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


def test_an_untrained_network_already_copies_what_came_before():
    import exams
    import torch
    from net import Ember, Shape

    torch.manual_seed(1)
    network = Ember(Shape())
    assert exams.copying_share(network) >= 0.7
    torch.nn.init.normal_(network.blocks[0].out.weight, std=0.02)  # without what the first layer brings
    assert exams.copying_share(network) < 0.1


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

    asked = [text_of(ask_chat(rng)) for _ in range(60)]
    assert all(text.startswith(f"<|system|>{INSTRUCTIONS}<|user|>[1] ") for text in asked)
    assert sum(f"<|assistant|>{UNKNOWN}<|end|>" in text for text in asked) in range(5, 30)
    assert any("Here are some notes. " in text_of(notes_chat(rng)) for _ in range(30))
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


def test_tangled_runs_that_come_again_can_be_told_apart(rng):
    from corpus import TANGLED_ROW, tangled

    for _ in range(30):
        ids, weights = tangled(rng, vocab=3072)
        assert len(ids) == len(weights) == TANGLED_ROW and min(ids) > 3
        tokens = ids.tolist()
        for at in [at for at, weight in enumerate(weights.tolist()) if weight]:
            earlier = [
                tokens[start + 2]
                for start in range(at - 2)
                if tokens[start : start + 2] == tokens[at - 2 : at]
            ]
            assert tokens[at] in earlier  # what counts has been said after the same two tokens


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
