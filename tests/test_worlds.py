"""The generator of little worlds in recipes/ember: seeded, many distinct wordings, sound documents."""

import random
import re
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "ember"


@pytest.fixture(autouse=True, scope="module")
def recipe():
    """The recipe's folder on the path, as when its scripts run."""
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))


def bare(text):
    return re.sub(r"[^a-z0-9 ]", "", text.lower()).strip()


def test_the_same_seed_gives_the_same_population_and_another_seed_another():
    import worlds

    assert worlds.population(1).facts == worlds.population(1).facts
    assert worlds.population(1).facts.keys() != worlds.population(2).facts.keys()


def test_every_relation_has_at_least_seven_distinct_wordings_of_statement_and_question():
    import worlds

    assert len(worlds.relations()) >= 30
    for relation in worlds.relations():
        for wordings in (relation.statements, relation.questions):
            assert len(wordings) >= 7, relation.key
            assert len({bare(wording) for wording in wordings}) == len(wordings), relation.key


def test_statements_name_subject_and_value_and_questions_only_the_subject():
    import worlds

    for relation in worlds.relations():
        for wording in relation.statements:
            assert wording.count("{s}") >= 1 and wording.count("{v}") + wording.count("{a}") == 1, wording
        for wording in relation.questions:
            assert "{s}" in wording and "{v}" not in wording and "{a}" not in wording, wording


def test_no_question_wording_of_one_kind_of_entity_asks_for_two_relations():
    import worlds

    seen = {}
    for relation in worlds.relations():
        for wording in relation.questions:
            other = seen.setdefault((relation.kind, bare(wording)), relation.key)
            assert other == relation.key, f"{wording!r} asks for {other} and {relation.key}"


def test_every_answer_states_subject_and_value():
    import worlds

    for fact in worlds.population(1).all_facts():
        assert fact.value.lower() in fact.answer.lower()
        assert fact.subject.removeprefix("the ") in fact.answer or fact.subject.endswith("s")
        assert fact.value.lower() in fact.short.lower()


def test_withheld_wordings_are_never_asked_in_training_documents():
    import documents
    import worlds

    people = worlds.population(1, entities=40)
    facts = people.all_facts()
    away = {fact.question(index) for fact in facts for index in worlds.withheld(fact)}
    assert len(away) > 50
    rng = random.Random(0)
    text = "".join(piece for _ in range(4000) for piece, _ in documents.known_chat(rng, people, facts))
    asked = set(re.findall(r"<\|user\|>(.*?)<\|assistant\|>", text))
    assert len(asked) > 500 and not asked & away


def test_answer_pieces_join_to_the_answer_and_weigh_the_value():
    import documents
    import worlds

    for fact in worlds.population(1, entities=60).all_facts():
        for short in (False, True):
            pieces = documents.answer_pieces(fact, short=short, value_weight=7.0)
            assert "".join(piece for piece, _ in pieces) == (fact.short if short else fact.answer)
            valued = "".join(piece for piece, weight in pieces if weight == 7.0)
            assert valued.strip().lower() == fact.value.lower()
