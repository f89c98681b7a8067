"""Search: the chunks that best fit a question, by their words and, where there are any, by vectors.

Words are ranked by BM25 (FTS5's, with Porter stems); vectors by their cosine, exactly. Two rankings are
fused by reciprocal rank, 1 / (60 + rank), summed (Cormack, Clarke and Büttcher, SIGIR 2009).

Common words cost most and say least: stop-words are left out, and in a large index so are the commonest of
the others, as long as rarer ones remain.

A search stays inside one collection: what the person remembers, or one vector store. Only what a word weighs
is counted over all of them.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nightschool.library import MEMORY
from nightschool.store import TOKENIZER, Database, open_scratch
from nightschool.vectors import Embedder

STOP_WORDS = frozenset(
    "a about am an and any are as at be because been being but by can could did do does doing done for from"
    " had has have having he her hers him his how i if in into is it its just know me my no nor not of on or"
    " our ours please s say she should so some such t tell than that the their theirs them then there these"
    " they this those to us was we were what when where which who whom whose why will with would you your"
    " yours".split()
)
WORD = re.compile(r"[^\W_]+")
# Weights of title, heading and text in BM25.
BM25 = "bm25(chunks_fts, 0.5, 1.0, 1.0)"
UNSEEN = 10  # chunks that are counted beside those that are there
MAX_WORDS = 32  # of a question
MAX_ROWS = 4000  # ranked for a question by its rarer words: 4 µs each
CANDIDATES = 50  # of each ranking
RRF_K = 60

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """A chunk that was found, which words of the question it has, and the share of their weight."""

    chunk_id: int
    source_id: int
    source: str
    title: str
    heading: str
    text: str
    score: float
    words: frozenset[str]
    coverage: float


def content_words(text: str) -> list[str]:
    """The words of a question to search for, each once; stop-words only where there are no others."""
    words = list(dict.fromkeys(WORD.findall(text.lower())))
    return [word for word in words if word not in STOP_WORDS][:MAX_WORDS] or words[:MAX_WORDS]


def found_in(texts: Sequence[str], words: Sequence[str]) -> list[set[str]]:
    """Which of the words stand in each text, in any of their forms: as the index compares them."""
    found: list[set[str]] = [set() for _ in texts]
    db = open_scratch()
    db.execute(f"create virtual table texts using fts5(text, tokenize = '{TOKENIZER}')")
    db.executemany("insert into texts (rowid, text) values (?, ?)", enumerate(texts))
    for word in words:
        for row in db.execute("select rowid from texts where texts match ?", (f'"{word}"',)):
            found[row[0]].add(word)
    db.close()
    return found


class Index:
    """The chunks of a collection, ready to be searched. Vectors are kept in memory while nothing changes."""

    def __init__(self, db: Database, embedder: Embedder | None = None, *, collection: str = MEMORY) -> None:
        self.db = db
        self.embedder = embedder
        self.collection = collection
        self._matrix: tuple[tuple[int, ...], Vectors, list[int]] | None = None

    @property
    def size(self) -> int:
        """How many chunks there are."""
        return int(self.db.execute("select count(*) from chunks").fetchone()[0])

    def search(self, question: str, *, limit: int = 5, sources: Sequence[int] | None = None) -> list[Hit]:
        """The best chunks, best first; none when no word fits and there are no vectors.

        Args:
            sources: look only into these, by id; they are of the collection.
        """
        weights = self.weights(content_words(question))
        rankings = [self.by_words(weights, sources=sources)]
        if self.embedder:
            near = self.by_vectors(self.embedder.embed_question(question), sources=sources)
            rankings.append(near)
        return self._hits(fuse(rankings)[:limit], weights)

    def weights(self, words: Sequence[str]) -> dict[str, float]:
        """What each word says: its inverse document frequency, as BM25 has it, never below a little.

        UNSEEN chunks without any of the words are counted too: else, where there are only a few, a word that
        stands in one says nothing, and a word that stands in none says all.
        """
        total = self.size + UNSEEN
        return {word: max(0.1, math.log((total + 1) / (self._count(word) + 0.5))) for word in words}

    def _count(self, word: str) -> int:
        """The number of chunks a word is in."""
        found = self.db.execute(
            "select count(*) from chunks_fts where chunks_fts match ?", (f'"{word}"',)
        ).fetchone()
        return int(found[0])

    def by_words(self, weights: Mapping[str, float], *, sources: Sequence[int] | None = None) -> list[int]:
        """Chunk ids by BM25."""
        words = self._rarer(weights)
        if not words:
            return []
        query = " OR ".join(f'"{word}"' for word in words)
        join, where, values = self._scope(sources)
        rows = self.db.execute(
            f"select chunks_fts.rowid from chunks_fts {join} where chunks_fts match ? {where}"
            f" order by {BM25} limit {CANDIDATES}",
            (query, *values),
        )
        return [row[0] for row in rows]

    def _scope(self, sources: Sequence[int] | None) -> tuple[str, str, tuple[str, ...]]:
        """SQL that keeps a search of words inside the collection, or the sources; nothing where all fit."""
        chunk = "join chunks on chunks.id = chunks_fts.rowid"
        if sources is not None:
            within = "and chunks.source_id in (select value from json_each(?))"
            return chunk, within, (json.dumps(list(sources)),)
        if not self.db.execute(
            "select 1 from sources where collection > ? or collection < ? limit 1", (self.collection,) * 2
        ).fetchone():
            return "", "", ()
        join = f"{chunk} join sources on sources.id = chunks.source_id"
        return join, "and sources.collection = ?", (self.collection,)

    def _rarer(self, weights: Mapping[str, float]) -> list[str]:
        """The rarest words of a question, as many as MAX_ROWS allows, at least one."""
        kept: list[str] = []
        rows = 0.0
        for word in sorted(weights, key=lambda word: -weights[word]):
            rows += (self.size + UNSEEN + 1) / math.exp(weights[word])
            if kept and rows > MAX_ROWS:
                break
            kept.append(word)
        return kept

    def by_vectors(self, vector: Vectors, *, sources: Sequence[int] | None = None) -> list[int]:
        """Chunk ids by cosine; vectors of other models than the embedder's take no part."""
        matrix, ids = self._vectors
        if sources is not None:
            marks = json.dumps(list(sources))
            within = {
                row["id"]
                for row in self.db.execute(
                    "select id from chunks where source_id in (select value from json_each(?))", (marks,)
                )
            }
            places = [place for place, id in enumerate(ids) if id in within]
            matrix, ids = matrix[places], [ids[place] for place in places]
        if not ids:
            return []
        cosines = matrix @ vector  # (n,)
        count = min(CANDIDATES, len(ids))
        best = np.argpartition(-cosines, count - 1)[:count]
        return [ids[at] for at in best[np.argsort(-cosines[best], kind="stable")]]

    @property
    def _vectors(self) -> tuple[Vectors, list[int]]:
        """All vectors of the embedder's model (n, d), read again when the database has changed."""
        assert self.embedder
        here = self.db.total_changes
        state = (here, *self.db.execute("pragma data_version").fetchone())
        if self._matrix is None or self._matrix[0] != state:
            rows = self.db.execute(
                "select chunk_id, vector from vectors join chunks on chunks.id = chunk_id join sources on"
                " sources.id = source_id where model = ? and collection = ? order by chunk_id",
                (self.embedder.id, self.collection),
            ).fetchall()
            data = b"".join(row["vector"] for row in rows)
            matrix = np.frombuffer(data, np.float16).astype(np.float32).reshape(max(1, len(rows)), -1)
            self._matrix = state, matrix, [row["chunk_id"] for row in rows]
        return self._matrix[1], self._matrix[2]

    def _hits(self, ranked: Sequence[tuple[int, float]], weights: Mapping[str, float]) -> list[Hit]:
        marks = ", ".join("?" * len(ranked))
        rows = {
            row["id"]: row
            for row in self.db.execute(
                "select chunks.*, sources.label from chunks join sources on sources.id = source_id"
                f" where chunks.id in ({marks})",
                [id for id, _ in ranked],
            )
        }
        kept = [(rows[id], score) for id, score in ranked if id in rows]
        found = found_in(
            [whole_text(row["title"], row["heading"], row["text"]) for row, _ in kept], [*weights]
        )
        total = sum(weights.values()) or 1.0
        return [
            Hit(
                chunk_id=row["id"],
                source_id=row["source_id"],
                source=row["label"],
                title=row["title"],
                heading=row["heading"],
                text=row["text"],
                score=score,
                words=frozenset(words),
                coverage=sum(weights[word] for word in words) / total,
            )
            for (row, score), words in zip(kept, found, strict=True)
        ]


def whole_text(title: str, heading: str, text: str) -> str:
    """A chunk with what stands above it."""
    return "\n".join(part for part in (title, heading, text) if part)


def fuse(rankings: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
    """One ranking of several by reciprocal rank: ids and scores, best first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, id in enumerate(ranking, 1):
            scores[id] = scores.get(id, 0.0) + 1 / (RRF_K + rank)
    return sorted(scores.items(), key=lambda entry: -entry[1])
