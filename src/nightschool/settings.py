"""The settings of each activity: one frozen dataclass, where defaults and help are written once.

CLI flags, run records and the tables in docs/ are made from these. None, or "auto", means: chosen from the
machine, the model and the data when the run starts, printed, and stored with what came of it.
"""

from dataclasses import dataclass, field, fields
from typing import Any


def setting(default: Any, help: str) -> Any:
    """A field with its help text."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainSettings:
    """One training run."""

    rank: int | None = setting(None, "Inner size of each LoRA pair")
    alpha: float | None = setting(None, "Scale of the adapter is alpha / rank  [default: 2 × rank]")
    dropout: float = setting(0.0, "Chance that an input of a LoRA pair is dropped")
    targets: tuple[str, ...] = setting(
        ("q", "k", "v", "o", "gate", "up", "down"), "Linear layers that get a LoRA pair"
    )
    lr: float | None = setting(None, "Peak learning rate")
    schedule: str = setting("cosine", "Learning rate after the warm-up: cosine, linear or constant")
    warmup: float = setting(0.05, "Share of the steps in which the learning rate rises")
    weight_decay: float = setting(0.0, "AdamW's weight decay")
    clip: float = setting(1.0, "Gradients longer than this are shortened to it; 0 for never")
    epochs: float | None = setting(None, "How often each lesson is seen")
    max_steps: int = setting(0, "Stop after so many steps; 0 for no limit")
    batch_tokens: int | None = setting(None, "Tokens in one step of the optimiser")
    micro_tokens: int | None = setting(None, "Tokens computed at once: the memory dial")
    max_tokens: int | None = setting(None, "Longest lesson; longer ones are cut")
    rehearsal: float = setting(0.0, "Share of the lessons taken from --rehearsal-data, against forgetting")
    measure_epochs: float = setting(1.0, "Epochs between two measurements on the held-out lessons")
    patience: int = setting(
        0, "Stop after so many measurements in a row without a better one, and keep the best; 0 for never"
    )
    precision: str = setting("auto", "Frozen weights as int8, bf16, fp32 or packed; auto measures")
    recompute: bool = setting(False, "Keep less for the backward pass, compute it again: less memory, slower")
    device: str = setting("cpu", "cpu, cuda or mps")
    threads: int = setting(0, "CPU threads; 0 for all cores")
    seed: int = setting(0, "Same seed, same adapter")
    checkpoint_s: float = setting(30.0, "Seconds between checkpoints")


def as_dict(settings: TrainSettings) -> dict[str, Any]:
    """For JSON: field → value."""
    return {f.name: getattr(settings, f.name) for f in fields(settings)}


def from_dict(values: dict[str, Any]) -> TrainSettings:
    """Back from JSON."""
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return TrainSettings(**known)


@dataclass(frozen=True)
class StudySettings:
    """One night's study: how it writes, what it sets aside, what an adapter must show to be promoted."""

    minutes: float = setting(
        240.0, "Time for all of it; what is not written by then waits for the next study"
    )
    wordings: int = setting(4, "Questions the model is asked to write about each sentence")
    by_words: int = setting(60, "Times that a tiny model is asked for each sentence by words of it")
    repeats: int = setting(10, "Lessons made for each fact, at least")
    exam: int = setting(200, "Most questions that are set aside for the exam")
    dev: int = setting(50, "Most questions that are set aside to watch the training")
    rehearsal: float = setting(0.4, "Share of the lessons that are the base's own words, against forgetting")
    earlier: float = setting(
        0.3,
        "Share of the lessons that are of sources studied before, where time is too short to learn them anew",
    )
    distil: float = setting(
        1.0, "Weight of what the base expects when it reads the passage, beside the words; 0 for none"
    )
    distil_top: int = setting(16, "How many of its likeliest tokens are kept for that, at each place")
    epochs: float = setting(3.0, "How often each lesson is seen, if the time allows")
    steps: int = setting(240, "Steps of training at least: few lessons are seen more often, up to 10 times")
    patience: int = setting(
        3,
        "Stop training after so many half epochs that bring nothing on the questions set aside; 0 for never",
    )
    rank: int = setting(16, "Inner size of each LoRA pair")
    lr: float | None = setting(None, "Peak learning rate")
    slots: int = setting(8, "Questions put to the model side by side")
    threads: int = setting(0, "CPU threads; 0 for all cores")
    seed: int = setting(0, "Same seed, same lessons")
    min_gain: float = setting(0.1, "Recall must rise by so much, or the adapter is not promoted")
    max_forgetting: float = setting(0.1, "Perplexity on general text may rise by so much")
    max_fabrication: float = setting(0.1, "Answers to what no note says may grow by so much")


@dataclass(frozen=True)
class ServeSettings:
    """One server: where it listens, who may speak to it, how much it does at once."""

    model: str = setting("ember", "The stack that answers where a request names none")
    host: str = setting("127.0.0.1", "Address to listen on; one that others can reach needs an API key")
    port: int = setting(7878, "Port to listen on; 0 for any that is free")
    api_key: str = setting("", "What programs must send as their key; empty for none")
    origins: tuple[str, ...] = setting((), "Web origins, beside this machine's own, that may speak to it")
    slots: int = setting(4, "Chats answered side by side")
    ctx: int = setting(0, "Tokens that a chat may hold; 0 for what the base was made for, at most 4096")
    threads: int = setting(0, "CPU threads; 0 for all cores")
    nice: int = setting(10, "How far training gives way to other programs: 0 not at all, 19 always")
