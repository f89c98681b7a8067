"""Search by words: stems, stop-words, common words; fusion; which words count."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightschool import index as index_module
from nightschool.index import Index, content_words, found_in, fuse
from nightschool.library import remember_text
from nightschool.store import open_store

NOTES = [
    "# Boiler\n\nHold the red knob for nine seconds to reset it.",
    "# Bees\n\nThe bees live behind the shed. Do not open the hive in rain.",
    "# Shed\n\nThe shed key hangs in the kitchen.",
    "# Café Zoë\n\nIt opens at eight.",
]


@pytest.fixture
def db():
    db = open_store()
    for note in NOTES:
        remember_text(db, note)
    return db


def titles(hits):
    return [hit.title for hit in hits]


@pytest.mark.parametrize(
    ("question", "first"),
    [
        ("How do I reset the boiler?", "Boiler"),
        ("resetting boilers", "Boiler"),
        ("Where are the hives?", "Bees"),
        ("cafe zoe opening", "Café Zoë"),
        ("KITCHEN", "Shed"),
        ('"red" AND knob* NOT (', "Boiler"),
        ("the knob's second", "Boiler"),
    ],
)
def test_the_best_chunk_comes_first(db, question, first):
    assert Index(db).search(question)[0].title == first


def test_what_stands_nowhere_is_not_found(db):
    assert Index(db).search("zeppelin") == []
    assert Index(db).search("") == []
    assert Index(db).search("?!") == []


def test_stop_words_do_not_find_anything_unless_there_is_nothing_else(db):
    assert titles(Index(db).search("What is the zeppelin in it?")) == []
    assert content_words("What is it?") == ["what", "is", "it"]
    assert content_words("What is the key? The KEY!") == ["key"]


def test_a_hit_says_where_it_is_from_and_how_much_of_the_question_it_has(db):
    hit = Index(db).search("shed key zeppelin")[0]
    assert (hit.title, hit.heading, hit.text) == ("Shed", "Shed", NOTES[2])
    assert hit.source.startswith("note-")
    weights = Index(db).weights(["shed", "key", "zeppelin"])
    assert hit.coverage == pytest.approx((weights["shed"] + weights["key"]) / sum(weights.values()))


def test_rarer_words_weigh_more(db):
    weights = Index(db).weights(["shed", "kitchen", "zeppelin"])
    assert weights["shed"] < weights["kitchen"] < weights["zeppelin"]
    assert weights["kitchen"] == pytest.approx(math.log((5 + index_module.UNSEEN) / 1.5))


def test_in_a_large_index_common_words_give_way_to_rare_ones(db, monkeypatch):
    monkeypatch.setattr(index_module, "MAX_ROWS", 3)
    index = Index(db)
    assert index._rarer(index.weights(["shed", "kitchen", "key"])) == ["kitchen", "key"]
    assert index._rarer(index.weights(["shed"])) == ["shed"]


def test_two_rankings_are_fused_by_reciprocal_rank():
    fused = dict(fuse([[1, 2, 3], [3, 1]]))
    assert fused == pytest.approx({1: 1 / 61 + 1 / 62, 3: 1 / 63 + 1 / 61, 2: 1 / 62})
    assert [id for id, _ in fuse([[1, 2, 3], [3, 1]])] == [1, 3, 2]


def test_words_are_compared_as_the_index_compares_them():
    texts = ["She keeps bees.", "A bee-keeper", "nothing"]
    assert found_in(texts, ["bee", "keeping", "she"]) == [{"bee", "keeping", "she"}, {"bee"}, set()]
    assert found_in([], ["a"]) == []


def test_any_question_can_be_asked(db):
    @given(st.text(max_size=60))
    @settings(deadline=None)
    def ask(question):
        Index(db).search(question)

    ask()


class Planes:
    """An embedder whose vectors are known: the letters a to h of a text, counted."""

    id = "planes"

    def embed_passages(self, texts):
        counts = np.array([[text.lower().count(letter) for letter in "abcdefgh"] for text in texts], float)
        lengths = np.linalg.norm(counts, axis=1, keepdims=True)
        return (counts / np.maximum(lengths, 1e-9)).astype(np.float32)

    def embed_question(self, text):
        return self.embed_passages([text])[0]


def add_vectors(db, embedder, model=None):
    for row in db.execute("select id, text from chunks").fetchall():
        vector = embedder.embed_passages([row["text"]]).astype(np.float16)
        db.execute(
            "insert into vectors (model, chunk_id, vector) values (?, ?, ?)",
            (model or embedder.id, row["id"], vector.tobytes()),
        )


def test_vectors_rank_by_cosine(db):
    embedder = Planes()
    add_vectors(db, embedder)
    index = Index(db, embedder)
    query = embedder.embed_question("bed bad")
    texts = [row["text"] for row in db.execute("select text from chunks order by id")]
    cosines = embedder.embed_passages(texts) @ query
    assert index.by_vectors(query) == [int(at) + 1 for at in np.argsort(-cosines, kind="stable")]
    assert len(index.search("zeppelin")) == len(NOTES)  # no word fits, but meanings might


def test_vectors_of_another_model_take_no_part(db):
    add_vectors(db, Planes(), model="another")
    assert Index(db, Planes()).by_vectors(Planes().embed_question("bed")) == []


def test_new_vectors_are_seen_whoever_wrote_them(db):
    index, other = Index(db, Planes()), open_store()
    query = Planes().embed_question("bed")
    assert index.by_vectors(query) == []
    add_vectors(other, Planes())
    assert len(index.by_vectors(query)) == len(NOTES)
    db.execute("delete from chunks where id = 1")
    assert 1 not in index.by_vectors(query)
