"""Every training setting, given as a flag, changes what it is meant to change: whole runs on a tiny base."""

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from tiny import write_tiny

from nightschool.adapters import load_weights
from nightschool.cli import main
from nightschool.cli.train import command as train_command
from nightschool.errors import NightschoolError
from nightschool.runs import Order, carry_out, find_run, read_log
from nightschool.settings import TrainSettings, as_dict, from_dict

# A quick run; each case below changes one of these, or adds to them.
PLAIN = {"rank": 4, "epochs": 2, "batch_tokens": 256, "micro_tokens": 128, "precision": "fp32", "threads": 1}


@dataclass(frozen=True)
class Trace:
    """What a run left behind, as far as settings can be seen in it."""

    settings: dict[str, Any]  # as the card has them
    steps: list[dict[str, Any]]  # the log
    shapes: dict[str, tuple[int, int]]  # tensor → shapes of A
    alpha: float
    weights: bytes
    measured: int  # how often held-out lessons were

    @property
    def lr(self) -> list[float]:
        return [step["lr"] for step in self.steps]

    @property
    def tokens(self) -> list[int]:
        return [step["tokens"] for step in self.steps]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny base and thirty examples."""
    folder = tmp_path_factory.mktemp("settings")
    write_tiny(folder / "tiny.gguf", "llama")
    turns = [
        [
            {"role": "user", "content": f"What is {i} and {i}?"},
            {"role": "assistant", "content": f"It is {2 * i}."},
        ]
        for i in range(30)
    ]
    text = "\n".join(json.dumps({"messages": turn}) for turn in turns)
    (folder / "sums.jsonl").write_text(text, encoding="utf-8")
    return folder


def traced(folder: Path, home: Path, **changes: Any) -> Trace:
    """Train through the command line with PLAIN and the changes, and read what came of it."""
    flags = []
    for name, value in (PLAIN | changes).items():
        flag = "--" + name.replace("_", "-")
        flags += (
            [flag] if value is True else [flag, ",".join(value) if isinstance(value, tuple) else str(value)]
        )
    data, base = str(folder / "sums.jsonl"), str(folder / "tiny.gguf")
    arguments = [
        "train",
        data,
        "-m",
        base,
        "--rehearsal-data",
        data,
        "--valid",
        data,
        "--restart",
        "--replace",
        "--json",
        *flags,
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    card = json.loads(result.stdout.splitlines()[-1])
    lora = load_weights(home / "adapters" / "sums")
    weights = b"".join(a.tobytes() + b.tobytes() for _, (a, b) in sorted(lora.weights.items()))
    every = read_log(home / "runs" / card["run"])
    log = [line for line in every if "lr" in line]
    shapes = {name: a.shape for name, (a, _) in lora.weights.items()}
    return Trace(card["settings"], log, shapes, lora.alpha, weights, len(every) - len(log))


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory) -> Trace:
    home = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTSCHOOL_HOME", str(home))
        return traced(folder, home)


def changed_weights(plain, other):
    return other.weights != plain.weights and other.tokens == plain.tokens and other.lr == plain.lr


def tensor_kinds(trace):
    return {name.split(".")[2] for name in trace.shapes}


def changed_course(plain, other):
    return other.weights != plain.weights and other.steps != plain.steps


# field → the value to give, and what it must do
EFFECTS = {
    "rank": (8, lambda plain, other: {shape[0] for shape in other.shapes.values()} == {8}),
    "alpha": (3.0, lambda plain, other: (plain.alpha, other.alpha) == (8.0, 3.0)),
    "dropout": (0.5, changed_weights),
    "targets": (("q", "down"), lambda plain, other: tensor_kinds(other) == {"attn_q", "ffn_down"}),
    "lr": (0.05, lambda plain, other: max(other.lr) == pytest.approx(0.05) != max(plain.lr)),
    "schedule": ("constant", lambda plain, other: len(set(other.lr[1:])) == 1 < len(set(plain.lr[1:]))),
    "warmup": (0.5, lambda plain, other: other.lr.index(max(other.lr)) > plain.lr.index(max(plain.lr))),
    "weight_decay": (2.0, changed_weights),
    "clip": (0.001, changed_weights),
    "epochs": (1.0, lambda plain, other: sum(other.tokens) * 2 == sum(plain.tokens)),
    "max_steps": (1, lambda plain, other: len(other.steps) == 1 < len(plain.steps)),
    "batch_tokens": (512, lambda plain, other: max(other.tokens) > max(plain.tokens)),
    "micro_tokens": (256, changed_course),
    "max_tokens": (28, lambda plain, other: sum(other.tokens) < sum(plain.tokens)),
    "measure_epochs": (0.5, lambda plain, other: (plain.measured, other.measured) == (2, 4)),
    "rehearsal": (0.5, lambda plain, other: sum(other.tokens) > 1.5 * sum(plain.tokens)),
    "precision": ("int8", changed_course),
    "seed": (7, changed_course),
}  # fmt: skip
# tests of their own, below or in test_train.py
ELSEWHERE = {"recompute", "device", "threads", "checkpoint_s", "patience"}


def test_every_setting_is_tested_here():
    assert set(EFFECTS) | ELSEWHERE == {field.name for field in fields(TrainSettings)}
    assert not set(EFFECTS) & ELSEWHERE


def test_the_same_settings_give_the_same_adapter(folder, plain, home):
    assert traced(folder, home).weights == plain.weights


@pytest.mark.parametrize("name", EFFECTS)
def test_a_setting_reaches_the_code_that_uses_it(folder, plain, home, name):
    value, effect = EFFECTS[name]
    assert effect(plain, traced(folder, home, **{name: value}))


def events_of(folder: Path, **changes: Any) -> Any:
    """The events of a run as they come, and its checkpoint."""
    settings = TrainSettings(**(PLAIN | changes))
    order = Order(
        base=str(folder / "tiny.gguf"), data=(folder / "sums.jsonl",), name="watched", settings=settings
    )
    run = find_run(order, replace_old=True)
    return carry_out(order, run), run.checkpoint


@pytest.mark.parametrize(("seconds", "there"), [(0.0, True), (1000.0, False)])
def test_checkpoints_come_as_often_as_asked(folder, seconds, there):
    events, checkpoint = events_of(folder, checkpoint_s=seconds)
    seen = [checkpoint.exists() for event in events if type(event).__name__ == "TrainStep"]
    assert any(seen) is there


def test_training_uses_as_many_threads_as_asked(folder):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            events, _ = events_of(folder, threads=threads, max_steps=1)
            list(events)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_recomputing_keeps_less_for_the_backward_pass(folder):
    kept = {}
    for recompute in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: (sizes.append(tensor.nbytes), tensor)[1], lambda tensor: tensor
        ):
            list(events_of(folder, recompute=recompute, max_steps=1)[0])
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 3


def test_the_device_is_the_one_asked_for(folder):
    events, _ = events_of(folder, device="cuda", max_steps=1)
    if torch.cuda.is_available():
        adapter = list(events)
        assert adapter
    else:
        with pytest.raises(NightschoolError, match="cuda"):
            list(events)


# The flags


def test_flags_defaults_and_help_come_from_the_dataclass():
    options = {option.name: option for option in train_command.params if isinstance(option, click.Option)}
    for field in fields(TrainSettings):
        option = options[field.name]
        assert option.opts == ["--" + field.name.replace("_", "-")]
        assert option.help and option.help.startswith(field.metadata["help"])
        assert field.default is not MISSING


def test_a_value_that_cannot_be_is_refused_before_anything_runs(folder):
    for flag, value in (
        ("--rank", "many"),
        ("--lr", "-1"),
        ("--schedule", "square"),
        ("--precision", "int3"),
    ):
        result = CliRunner().invoke(main, ["train", str(folder / "sums.jsonl"), flag, value])
        assert result.exit_code == 2
        assert flag in result.output


def test_settings_survive_json():
    settings = TrainSettings(rank=3, targets=("q",), lr=0.1)
    assert from_dict(json.loads(json.dumps(as_dict(settings)))) == settings
