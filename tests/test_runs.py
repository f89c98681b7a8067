"""Whole runs through the command line on a tiny base: adapters, cards, kills, and what goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny import write_tiny

from nightschool.cli import main
from nightschool.runs import read_log

COMMAND = [sys.executable, "-m", "nightschool"]
QUICK = ["--rank", "4", "--epochs", "6", "--batch-tokens", "256", "--precision", "fp32", "--threads", "1"]
FILES = ("adapter.gguf", "adapter_model.safetensors", "adapter_config.json")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("base") / "tiny.gguf", "llama")


@pytest.fixture
def data(tmp_path):
    """Forty examples."""
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} and {i}?"},
                {"role": "assistant", "content": f"It is {2 * i}."},
            ]
        }
        for i in range(40)
    ]
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def saved(home, name="sums"):
    return {file: (home / "adapters" / name / file).read_bytes() for file in FILES}


def test_training_saves_an_adapter_and_a_card_with_a_receipt(home, base, data):
    result = invoke("train", data, "-m", base, *QUICK, "--json")
    assert result.exit_code == 0, result.output
    card = json.loads(result.stdout.splitlines()[-1])
    assert card["training"]["last_loss"] < card["training"]["first_loss"]
    assert card["lessons"] == 40
    assert card["settings"]["precision"] == "fp32"
    assert card["sources"][0]["file"] == "sums.jsonl"
    assert card["receipt"]["peak_rss_bytes"] > 1e8
    assert card["receipt"]["energy_j"] > 0
    assert set(saved(home)) == set(FILES)
    run = next((home / "runs").iterdir())
    assert sorted(file.name for file in run.iterdir()) == ["log.jsonl", "run.json"]
    assert [line["step"] for line in read_log(run)] == list(range(1, card["training"]["steps"] + 1))


def test_the_adapter_changes_what_the_engine_answers(home, base, data):
    assert invoke("train", data, "-m", base, *QUICK, "--lr", "0.02").exit_code == 0
    exam = data.with_name("exam.jsonl")
    exam.write_text('{"question": "What is 4 and 4?", "answer": "8"}\n', encoding="utf-8")
    result = invoke("eval", exam, "-m", f"{base}+sums", "--before", "--general", data, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["answers"][0]["reply"] != found["answers_before"][0]["reply"]
    assert found["perplexity"] != found["perplexity_before"]


def test_a_run_killed_at_any_moment_and_resumed_gives_the_same_bytes(home, base, data, tmp_path, monkeypatch):
    arguments = ["train", str(data), "-m", str(base), *QUICK, "--dropout", "0.1", "--checkpoint-s", "0"]
    arguments += ["--epochs", "40"]
    for resume, after_steps in (([], 15), (["--resume"], 40)):
        with subprocess.Popen([*COMMAND, *arguments, *resume], stderr=subprocess.DEVNULL) as process:
            while steps_logged(home) < after_steps:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
    assert not (home / "adapters").exists()
    resumed = invoke(*arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    monkeypatch.setenv("NIGHTSCHOOL_HOME", str(tmp_path / "other"))
    assert invoke(*arguments).exit_code == 0
    assert saved(tmp_path / "other") == saved(home)


def steps_logged(home):
    return sum(len(read_log(run)) for run in (home / "runs").glob("*"))


def test_ctrl_c_saves_and_says_how_to_go_on(home, base, data):
    arguments = ["train", str(data), "-m", str(base), *QUICK, "--epochs", "400"]
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True) as process:
        while steps_logged(home) < 3:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "--resume" in errors
    assert "Traceback" not in errors
    run = next((home / "runs").iterdir())
    assert (run / "checkpoint.safetensors").exists()
    again = invoke(*arguments)
    assert again.exit_code == 1
    assert "was begun before and stands at step" in again.output
    assert not (home / "adapters").exists() or not list((home / "adapters").iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "missing.jsonl"], "missing.jsonl"),
        (["train", "bad.jsonl"], "line 2"),
        (["train", "good.jsonl", "-m", "nobody"], "'nobody'"),
        (["train", "good.jsonl", "--resume"], "No unfinished run"),
        (["train", "good.jsonl", "--targets", "q,nose"], "--targets"),
        (["train", "good.jsonl", "--name", "../up"], "cannot be the name"),
        (["train", "good.jsonl", "--max-tokens", "4096"], "4096"),
        (["train", "good.jsonl", "--device", "cuda"], "no cuda device"),
        (["train", "good.jsonl", "--device", "mps", "--precision", "int8"], "bf16, or auto"),
        (["eval", "missing.jsonl"], "missing.jsonl"),
        (["eval", "bad-exam.jsonl"], "line 2"),
        (["eval", "exam.jsonl", "-m", "BASE+nobody"], "'nobody'"),
    ],
)
def test_bad_input_ends_in_a_sentence(home, base, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    Path("good.jsonl").write_text(good)
    Path("bad.jsonl").write_text(good + '{"messages": []}\n')
    Path("exam.jsonl").write_text('{"question": "a?", "answer": "b"}\n')
    Path("bad-exam.jsonl").write_text('{"question": "a?", "answer": "b"}\n{"question": "c?"}\n')
    if "-m" not in arguments:
        arguments = [*arguments, "-m", str(base)]
    result = invoke(*[argument.replace("BASE", str(base)) for argument in arguments])
    assert result.exit_code in (1, 2)
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert not (home / "adapters").exists() or not list((home / "adapters").iterdir())


def test_a_taken_name_is_not_overwritten_without_being_asked(home, base, data):
    assert invoke("train", data, "-m", base, *QUICK).exit_code == 0
    before = saved(home)
    again = invoke("train", data, "-m", base, *QUICK, "--seed", "1")
    assert again.exit_code == 1
    assert "--replace" in again.output
    assert saved(home) == before
    assert invoke("train", data, "-m", base, *QUICK, "--seed", "1", "--replace").exit_code == 0
    assert saved(home) != before


def test_validation_and_rehearsal_find_their_way_into_the_card(home, base, data):
    result = invoke(
        "train",
        data,
        "-m",
        base,
        *QUICK,
        "--valid",
        data,
        "--rehearsal-data",
        data,
        "--rehearsal",
        "0.2",
        "--json",
    )
    assert result.exit_code == 0, result.output
    card = json.loads(result.stdout.splitlines()[-1])
    assert (card["lessons"], card["rehearsal_lessons"]) == (40, 40)
    assert card["training"]["steps"] > 6  # a fifth of each step's tokens are not lessons
    assert len(card["training"]["validation"]) == 6


def test_a_recipe_sets_what_the_person_did_not(home, base, data):
    result = invoke(
        "train", data, "-m", base, "--recipe", "alpaca", "--epochs", "1", "--precision", "fp32", "--json"
    )
    assert result.exit_code == 0, result.output
    settings = json.loads(result.stdout.splitlines()[-1])["settings"]
    assert (settings["rank"], settings["alpha"], settings["lr"]) == (8, 16, 3e-4)
    assert settings["epochs"] == 1
    assert settings["targets"] == ["q", "v"]
