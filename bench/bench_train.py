"""How fast does Nightschool train, beside PEFT + transformers on the same machine?

    python bench/bench_train.py --shape 135M                  documents of 256 tokens, all of them targets
    python bench/bench_train.py --shape 1B --data alpaca      the lengths of Alpaca's lessons; needs
    --alpaca-file python bench/bench_train.py --shape 7B --quant Q4_0 --peer none

Both sides train a LoRA of rank 8 on all linear layers of a random model of the shape, on the same token ids,
the same lessons a step, AdamW. Ours reads a GGUF of --quant and picks its precision; the peer holds bfloat16
weights, as its users do on a CPU. Each side runs in a process of its own, ours and the peer's in turn,
--repeats times, with the same allocator settings (glibc asked to keep and not to return memory); nothing else
may run meanwhile. Where the comparison is unfair to the peer: transformers pads a batch to its longest lesson
(with --data equal there is nothing to pad), and computes logits for every token; both are how it is used.
Where it is unfair to us: the peer's weights are not quantised, so it does no unpacking at load; loading is
not timed on either side.

Theory: a step of T tokens multiplies each frozen weight twice (forward and gradient to the input; none to the
weight), so 4·N·T operations for N weights. `gemm_share` is that rate over the rate of the machine's best int8
product of the shape's widest matrix: 1.0 would be a trainer that does nothing but multiply.

Prints a table, then one JSON line.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from nightschool.gguf import TensorType
from nightschool.shapes import SHAPES, write_random

RANK = 8
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184"
    ":glibc.malloc.trim_threshold=17179869184:glibc.malloc.arena_max=1"
}
Lesson = tuple[np.ndarray, np.ndarray]  # tokens (T,), targets (T,)


def main() -> None:
    options = parse()
    if options.role:
        print(json.dumps(ours(options) if options.role == "ours" else peft(options)))
        return
    with tempfile.TemporaryDirectory(prefix="nightschool-bench-") as folder:
        options.gguf = str(Path(folder) / "random.gguf")
        write_random(Path(options.gguf), SHAPES[options.shape], TensorType[options.quant])
        runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peft": []}
        for _ in range(options.repeats):
            for role in ("ours", "peft") if options.peer == "peft" else ("ours",):
                runs[role].append(run_role(role, options))
    report(options, runs)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="135M")
    parser.add_argument("--quant", choices=("Q8_0", "Q4_0", "Q4_K"), default="Q8_0")
    parser.add_argument("--data", choices=("equal", "alpaca"), default="equal")
    parser.add_argument("--alpaca-file", default="../shared/data/instruct/alpaca_data.json")
    parser.add_argument("--peer", choices=("peft", "none"), default="peft")
    parser.add_argument("--steps", type=int, default=6, help="timed steps, after two that are not")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gguf", help=argparse.SUPPRESS)
    parser.add_argument("--role", choices=("ours", "peft"), help=argparse.SUPPRESS)
    return parser.parse_args()


def run_role(role: str, options: argparse.Namespace) -> dict[str, Any]:
    names = ("shape", "quant", "data", "alpaca_file", "steps", "batch_tokens", "precision", "threads", "gguf")
    flags = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    done = subprocess.run(
        [sys.executable, __file__, f"--role={role}", *flags],
        env=os.environ | ALLOCATOR,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{role:>5}: {result['tokens_per_s']:8.1f} tokens/s  {result['peak_rss_bytes'] / 1e9:5.2f} GB",
        flush=True,
    )
    return result


def report(options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> None:
    def middle(role: str, key: str) -> float | None:
        return median(run[key] for run in runs[role]) if runs[role] else None

    mine = runs["ours"][0]
    ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(runs["ours"], runs["peft"], strict=False)]
    speed = middle("ours", "tokens_per_s") or 0.0
    operations = 4 * mine["frozen_weights"] * speed
    row = {
        "shape": options.shape,
        "quant": options.quant,
        "data": options.data,
        "tokens_per_s": speed,
        "lessons_per_s": middle("ours", "lessons_per_s"),
        "peer_tokens_per_s": middle("peft", "tokens_per_s"),
        "peer_lessons_per_s": middle("peft", "lessons_per_s"),
        "ratio": median(ratios) if ratios else None,
        "ratio_min": min(ratios, default=None),
        "ratio_max": max(ratios, default=None),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs["ours"]),
        "peer_peak_rss_bytes": max((run["peak_rss_bytes"] for run in runs["peft"]), default=None),
        "int8_gemm_ops_per_s": mine["int8_gemm_ops_per_s"],
        "gemm_share": operations / mine["int8_gemm_ops_per_s"],
        "precision": mine["precision"],
    }
    for key, value in row.items():
        print(f"{key:>22}  {value:.4g}" if isinstance(value, float) else f"{key:>22}  {value}")
    print(json.dumps(row))


# ── the data: the same token ids for both ───────────────────────────────────────────────────────────────────


def lessons_by_step(options: argparse.Namespace) -> Iterator[list[Lesson]]:
    """Endless steps of about --batch-tokens tokens, from a fixed seed."""
    rng = np.random.default_rng(0)
    vocabulary = SHAPES[options.shape].vocabulary
    lengths = _lengths(options, rng)
    while True:
        step: list[Lesson] = []
        while sum(len(tokens) for tokens, _ in step) < options.batch_tokens:
            prompt, answer = next(lengths)
            targets = np.arange(prompt + answer) >= prompt
            step.append((rng.integers(5, vocabulary, prompt + answer).astype(np.int32), targets))
        yield step


def _lengths(options: argparse.Namespace, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """(tokens of prompt, tokens of answer) of each lesson; four characters of English are about one token."""
    if options.data == "equal":
        while True:
            yield 1, 255
    records = json.loads(Path(options.alpaca_file).read_text(encoding="utf-8"))
    while True:
        record = records[int(rng.integers(len(records)))]
        prompt = 40 + (len(record["instruction"]) + len(record["input"])) // 4
        yield min(prompt, 400), min(max(len(record["output"]) // 4, 1), 112)


# ── ours ────────────────────────────────────────────────────────────────────────────────────────────────────


def ours(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from nightschool import train as loop
    from nightschool.gguf import open_gguf
    from nightschool.lessons import Lesson as NightLesson
    from nightschool.lora import Lora
    from nightschool.model import Model
    from nightschool.settings import TrainSettings

    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    loop.keep_freed_memory()
    precision = "int8" if options.precision == "auto" else options.precision
    model = Model(open_gguf(Path(options.gguf)), precision)
    lora = Lora(model.trainable(), rank=RANK, alpha=2 * RANK)
    stream = lessons_by_step(options)
    spent: list[tuple[float, int, int]] = []
    settings = loop.resolve(
        TrainSettings(rank=RANK, batch_tokens=options.batch_tokens, lr=1e-4),
        model.config,
        [NightLesson(*lesson) for lesson in next(stream)],
    )
    optimiser = loop.AdamW(lora, settings)
    for step in range(options.steps + 2):
        lessons = [NightLesson(*lesson) for lesson in next(stream)]
        pieces = list(loop.pack(lessons, batch_tokens=settings.micro_tokens, seed=0, epoch=0))
        started = time.perf_counter()
        loop.accumulate(model, lora, pieces, settings, step)
        optimiser.update(1e-4)
        spent.append((time.perf_counter() - started, sum(len(x.tokens) for x in lessons), len(lessons)))
    frozen = (
        sum(out * width for out, width in model.trainable().values())
        + model.head.shape[0] * model.head.shape[1]
    )
    return measured(spent[2:]) | {
        "frozen_weights": frozen,
        "precision": model.precision,
        "int8_gemm_ops_per_s": int8_rate(options.shape),
    }


def int8_rate(shape: str) -> float:
    """Operations a second of the best plain int8 product of the shape's gate and up projections."""
    import torch

    width, ffn = SHAPES[shape].width, SHAPES[shape].ffn
    x = torch.randint(-127, 127, (512, width), dtype=torch.int8)
    w = torch.randint(-127, 127, (2 * ffn, width), dtype=torch.int8)
    times = []
    for _ in range(12):
        started = time.perf_counter()
        torch._int_mm(x, w.t())
        times.append(time.perf_counter() - started)
    return 2 * 512 * width * 2 * ffn / min(times)


def measured(spent: list[tuple[float, int, int]]) -> dict[str, Any]:
    """From (seconds, tokens, lessons) of each timed step."""
    seconds = sum(s for s, _, _ in spent)
    return {
        "tokens_per_s": sum(tokens for _, tokens, _ in spent) / seconds,
        "lessons_per_s": sum(lessons for _, _, lessons in spent) / seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


# ── the peer ────────────────────────────────────────────────────────────────────────────────────────────────


def peft(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    shape = SHAPES[options.shape]
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        use_cache=False,
    )
    torch.set_default_dtype(torch.bfloat16)
    base = LlamaForCausalLM(config)
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)
    stream, spent = lessons_by_step(options), []
    next(stream)
    for _ in range(options.steps + 2):
        lessons = next(stream)
        longest = max(len(tokens) for tokens, _ in lessons)
        ids = torch.zeros(len(lessons), longest, dtype=torch.long)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, (tokens, targets) in enumerate(lessons):
            ids[row, : len(tokens)] = torch.from_numpy(tokens).long()
            labels[row, : len(tokens)] = torch.where(torch.from_numpy(targets), ids[row, : len(tokens)], -100)
            mask[row, : len(tokens)] = 1
        started = time.perf_counter()
        extra = {} if bool(mask.all()) else {"attention_mask": mask}
        model(input_ids=ids, labels=labels, **extra).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        spent.append((time.perf_counter() - started, sum(len(tokens) for tokens, _ in lessons), len(lessons)))
    return measured(spent[2:])


if __name__ == "__main__":
    main()
