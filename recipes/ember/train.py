"""Make ember from nothing: `python recipes/ember/train.py --data FOLDER --minutes 80 [--resume]`.

Data, tokenizer, training, exams, GGUF and card, in one command. Muon for the matrices, AdamW for the rest;
the learning rate is constant, then falls to zero. Weights are kept in fp32; on a CPU the products are in int8
(kernels.cpp). Stopped at any moment, the same command with --resume goes on from the last checkpoint.
"""

import argparse
import json
import os
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import exams
import torch
from corpus import MIXTURES, Corpus
from export import write_model
from muon import Muon
from net import Ember, Shape
from texts import general_texts
from tokenizers import Tokenizer
from vocabulary import sentence_ends, train_tokenizer
from worlds import population

from nightschool.answer import UNKNOWN
from nightschool.engine import Engine

SEED = 1
DRILLED = ("pairs", "tangled", "beginnings", "sentences")


@dataclass(frozen=True)
class Settings:
    """All choices of a run."""

    minutes: float = 60.0
    micro_tokens: int = 4096
    accumulate: int = 2
    matrix_lr: float = 0.004  # twice as much, and finding is half forgotten within a million tokens (LOG.md)
    matrix_decay: float = 0.03  # without it queries and keys grow until attention is too sharp for int8
    other_lr: float = 8e-4
    warmup_steps: int = 100
    decay_from: float = 0.5
    entities: int = 320
    checkpoint_s: float = 120.0
    exam_s: float = 1200.0


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with text/ as texts.py expects it")
    parser.add_argument("--work", type=Path, default=Path("work/ember"), help="checkpoints and logs")
    parser.add_argument(
        "--out", type=Path, help="where ember.gguf and card.json go (default: the work folder)"
    )
    parser.add_argument("--minutes", type=float, default=Settings.minutes)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--average", type=Path, help="checkpoint of an earlier end of this run: the model is the mean of both"
    )
    parser.add_argument("--plain", action="store_true", help="plain torch, without kernels.cpp")
    for name, field in Settings.__dataclass_fields__.items():
        if name != "minutes":
            kind = type(field.default)
            parser.add_argument("--" + name.replace("_", "-"), type=kind, default=field.default)
    parser.add_argument("--layers", type=int, default=Shape.layers)
    parser.add_argument("--hidden", type=int, default=Shape.hidden)
    options = vars(parser.parse_args())
    if options["average"] and not options["average"].is_file():  # not found out after hours of training
        parser.error(f"--average: there is no checkpoint {options['average']}; name one that a run has kept.")
    settings = Settings(**{name: options[name] for name in Settings.__dataclass_fields__})
    Run(options, settings).train()


class Run:
    """One training run: model, optimisers, data stream, clock."""

    def __init__(self, options: dict[str, Any], settings: Settings) -> None:
        self.settings, self.work, self.device = settings, options["work"], torch.device(options["device"])
        self.out = options["out"] or self.work
        self.average: Path | None = options["average"]
        self.work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(SEED)
        people = population(SEED, entities=settings.entities)
        stories, books, self.held = general_texts(options["data"])
        vocabulary = self.work / "tokenizer.json"
        if not vocabulary.exists():
            train_tokenizer(
                vocabulary, Shape.vocab, people=people, texts=stories[:3000] + books[:4000], seed=SEED
            )
        self.tokenizer, self.people = Tokenizer.from_file(str(vocabulary)), people
        self.corpus = Corpus(self.tokenizer, people, stories=stories, books=books, seed=SEED)
        shape = Shape(
            layers=options["layers"], hidden=options["hidden"], vocab=self.tokenizer.get_vocab_size()
        )
        is_fast = self.device.type == "cpu" and not options["plain"]
        if is_fast and not shutil.which(os.environ.get("CXX", "c++")):
            is_fast = False
            self.log(
                "There is no C++ compiler to build kernels.cpp with: plain torch then, at half the speed."
            )
        self.model = Ember(shape, ends=sentence_ends(self.tokenizer), fast=is_fast).to(self.device)
        named = list(self.model.named_parameters())
        matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
        others = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]
        self.optimisers = [
            Muon(matrices, lr=settings.matrix_lr, decay=settings.matrix_decay),
            torch.optim.AdamW(others, lr=settings.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.step, self.tokens, self.elapsed = 0, 0, 0.0
        self.losses: list[tuple[int, float]] = []
        if options["resume"] and (self.work / "checkpoint.pt").exists():
            self.load()

    def train(self) -> None:
        """Train until the time is used up, then examine and export; Ctrl-C ends with a checkpoint instead."""
        budget_s = self.settings.minutes * 60
        stopped: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: stopped.append(number))  # noted between steps only
        last = saved = examined = time.monotonic()
        while self.elapsed < budget_s:
            loss = self.one_step(self.elapsed / budget_s)
            now = time.monotonic()
            self.elapsed += now - last
            last = now
            self.losses.append((self.step, loss))
            if self.step % 20 == 0:
                recent = sum(value for _, value in self.losses[-20:]) / len(self.losses[-20:])
                self.log(f"step {self.step} loss {recent:.3f} tokens {self.tokens} s {self.elapsed:.0f}")
            if self.step % 100 == 0:
                drills = self.corpus.drills
                shares = {kind: exams.drilled(self.model, getattr(drills, kind)) for kind in DRILLED}
                self.log(" ".join(f"{kind} {share:.2f}" for kind, share in shares.items()))
            if stopped or now - saved > self.settings.checkpoint_s:
                self.save()
                saved = now
            if stopped:
                self.log("Stopped: the same command with --resume goes on from here.")
                return
            if now - examined > self.settings.exam_s:
                self.log(json.dumps(self.examine(64)))
                examined = time.monotonic()
                last = examined
        self.save()
        self.finish()

    def one_step(self, progress: float) -> float:
        """One optimiser step; `progress` is the share of the time that is used up."""
        settings = self.settings
        fall = min(1.0, (1.0 - progress) / (1.0 - settings.decay_from))
        warm = min(1.0, (self.step + 1) / settings.warmup_steps)
        for optimiser, lr in zip(self.optimisers, (settings.matrix_lr, settings.other_lr), strict=True):
            optimiser.param_groups[0]["lr"] = lr * fall * warm
        total = 0.0
        for _ in range(settings.accumulate):
            batch = self.corpus.batch(settings.micro_tokens, progress=progress)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                loss = self.model.loss(
                    batch.tokens.to(self.device), batch.weights.to(self.device), batch.lengths
                )
            (loss / settings.accumulate).backward()
            total += loss.item() / settings.accumulate
            self.tokens += len(batch.tokens)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        return total

    def examine(self, count: int) -> dict[str, float]:
        """The exams, on `count` questions each, answered by llama.cpp; and plain English."""
        asked = {
            "known": exams.known_questions(self.people, seed=5, count=count, held_out=False),
            "known_other_wording": exams.known_questions(self.people, seed=5, count=count, held_out=True),
            "by_heart_other_wording": exams.heart_questions(SEED + 2, seed=5, count=count),
            "notes": exams.notes_questions(seed=5, count=count),
            "framed_notes": exams.framed_questions(seed=5, count=count),
            "pages": exams.page_questions(seed=5, count=2 * count),
            "not_in_notes": exams.notes_questions(seed=6, count=count, absent=True),
        }
        path = self.work / "examined.gguf"
        self.write(path)
        with Engine(path, slots=exams.SLOTS, ctx=self.model.shape.context) as engine:
            said = {name: exams.answers(engine, [q.prompt for q in some]) for name, some in asked.items()}
        figures = {name: round(exams.right(some, said[name]), 3) for name, some in asked.items()}
        figures["refused"] = round(sum(text.startswith(UNKNOWN) for text in said["notes"]) / count, 3)
        texts = self.held[: max(8, count // 5)]
        for name, some in (("stories", texts[0::2]), ("books", texts[1::2])):
            figures[f"bits_per_byte_{name}"] = round(exams.bits_per_byte(self.model, self.tokenizer, some), 3)
        return figures

    def write(self, path: Path) -> None:
        """The model as a GGUF."""
        write_model(path, dict(self.model.named_parameters()), self.model.shape, self.tokenizer)

    def finish(self) -> None:
        """Exams, GGUF and card."""
        if self.average:
            earlier = torch.load(self.average, map_location=self.device, weights_only=True)["weights"]
            with torch.no_grad():
                for name, weight in self.model.named_parameters():
                    weight.lerp_(earlier[name], 0.5)
        figures = self.examine(64)  # the whole examination is examine.py's
        self.log(json.dumps(figures))
        self.write(self.out / "ember.gguf")
        card = make_card(self, figures)
        (self.out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    def log(self, line: str) -> None:
        """Keep and show a line."""
        with (self.work / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "weights": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "clock": (self.step, self.tokens, self.elapsed),
            "losses": self.losses,
            "corpus": self.corpus.state,
        }
        draft = self.work / "checkpoint.draft"
        torch.save(state, draft)
        os.replace(draft, self.work / "checkpoint.pt")

    def load(self) -> None:
        """Go on from the checkpoint."""
        state = torch.load(self.work / "checkpoint.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["weights"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            for group, asked in zip(kept["param_groups"], optimiser.param_groups, strict=True):
                group["decay"] = asked.get("decay", 0.0)
            optimiser.load_state_dict(kept)
        self.step, self.tokens, self.elapsed = state["clock"]
        self.losses = state["losses"]
        self.corpus.state = state["corpus"]


def make_card(run: Run, figures: dict[str, float]) -> dict[str, Any]:
    """What ember says of itself."""
    tail = [value for _, value in run.losses[-50:]]
    return {
        "name": "ember",
        "licence": "Apache-2.0",
        "what_it_is": "A very small language model made by recipes/ember for demonstrations and tests: it "
        "speaks simple sentences, keeps to question and answer, and takes up new facts through an adapter.",
        "what_it_is_not": "A source of knowledge. It knows a made-up population and nothing of the world; "
        "`nightschool pull` gets a real model.",
        "parameters": sum(weight.numel() for weight in run.model.parameters()),
        "shape": asdict(run.model.shape),
        "data": {
            "tokens_by_kind_from_share_of_time": MIXTURES,
            "generator": "recipes/ember: little worlds, seed 1, written for this project (Apache-2.0)",
            "stories": "TinyStories, 5 MB (CDLA-Sharing-1.0)",
            "books": "mlschmitt/classic-books-markdown, 7 MB of prose (public domain)",
        },
        "population": {"entities": len(run.people.facts), "facts": len(run.people.all_facts())},
        "settings": asdict(run.settings),
        "tokens": run.tokens,
        "steps": run.step,
        "train_s": round(run.elapsed),
        "final_loss": round(sum(tail) / len(tail), 4),
        "exams": figures,
    }


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    main()
