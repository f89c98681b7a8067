"""chat, models and pull from the command line, and how progress is drawn."""

import fcntl
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console
from tiny import write_tiny, write_tiny_adapter

import nightschool
from nightschool import hub
from nightschool.cli import chat as chat_command
from nightschool.cli import main
from nightschool.cli._progress import curve, duration_text, show
from nightschool.cli.chat import Talk
from nightschool.engine import Engine
from nightschool.errors import ContextFull, EngineError
from nightschool.events import Notice, Progress, TrainStep, Validation

GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 20}


def run(*arguments, **options):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    base = write_tiny(folder / "base.gguf", "llama")
    write_tiny_adapter(folder / "loud.gguf", base)
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    with Engine(folder / "base.gguf", adapters={"loud": folder / "loud.gguf"}) as engine:
        yield engine


@pytest.fixture
def talk(engine):
    return Talk(engine, {}, sampling=GREEDY, system=None)


def put_on_the_shelf(home: Path, folder: Path, name: str) -> None:
    """An adapter made elsewhere: it does not say what it was trained on."""
    shelf = home / "adapters" / name
    shelf.mkdir(parents=True)
    (shelf / "adapter.gguf").write_bytes((folder / "loud.gguf").read_bytes())
    (shelf / "card.json").write_text("{}")


# Once ---------------------------------------------------------------------------------------------


def test_one_question_gets_one_answer_on_stdout(folder, engine):
    base = folder / "base.gguf"
    asked = ["--temperature", "0", "--max-tokens", "12"]
    words = run("chat", "-m", base, *asked, "hello", "there")
    piped = run("chat", "-m", base, *asked, input="hello there\n")
    expected = engine.chat([{"role": "user", "content": "hello there"}], temperature=0.0, max_tokens=12)
    assert (words.exit_code, words.stdout, words.stderr) == (0, expected.lstrip() + "\n", "")
    assert piped.stdout == words.stdout
    both = run("chat", "-m", base, *asked, "hello", input="there")
    together = [{"role": "user", "content": "hello\n\nthere"}]
    assert both.stdout == engine.chat(together, temperature=0.0, max_tokens=12).lstrip() + "\n"


def test_settings_and_the_stack_reach_the_engine(folder, engine, home):
    put_on_the_shelf(home, folder, "loud")
    stack = f"{folder / 'base.gguf'}+loud@0.5"
    result = run(
        "chat", "-m", stack, "--system", "we", "--seed", 3, "--temperature", 1.5, "--max-tokens", 9, "hi"
    )
    messages = [{"role": "system", "content": "we"}, {"role": "user", "content": "hi"}]
    sampling = {"seed": 3, "temperature": 1.5, "max_tokens": 9}
    expected = engine.chat(messages, stack={"loud": 0.5}, **sampling)
    assert result.stdout == expected.lstrip() + "\n", result.stderr
    assert expected != engine.chat(messages, **sampling)


@pytest.mark.parametrize(
    ("stack", "reason"),
    [("nobody", "There is no base 'nobody'"), ("{base}+nobody", "nobody"), ("+x", "names no base")],
)
def test_a_stack_that_cannot_be_is_one_line(folder, stack, reason):
    result = run("chat", "-m", stack.format(base=folder / "base.gguf"), "hi")
    assert result.exit_code == 1 and reason in result.stderr and "Traceback" not in result.stderr


def test_an_adapter_for_another_base_is_refused_before_the_engine_starts(folder, home, tmp_path):
    put_on_the_shelf(home, folder, "loud")
    other = write_tiny(tmp_path / "other.gguf", "qwen2")
    result = run("chat", "-m", f"{other}+loud", "hi")
    assert result.exit_code == 1 and "'llama' models" in result.stderr


def test_no_question_at_all_is_said(folder):
    result = run("chat", "-m", folder / "base.gguf", input="")
    assert result.exit_code == 2 and "no question" in result.stderr


def test_chat_needs_no_torch():
    modules = "nightschool.cli.chat, nightschool.adapters, nightschool.engine"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(nightschool.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


# In conversation ----------------------------------------------------------------------------------


def test_a_conversation_remembers_itself(talk, engine):
    first = "".join(talk.ask("hello"))
    second = "".join(talk.ask("and we"))
    turns = [("user", "hello"), ("assistant", first), ("user", "and we"), ("assistant", second)]
    assert talk.messages == [{"role": role, "content": content} for role, content in turns]
    assert second == engine.chat(talk.messages[:3], **GREEDY)
    assert second != engine.chat(talk.messages[2:3], **GREEDY)


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(talk, engine, monkeypatch, capsys):
    said, echo = [], click.echo

    def interrupted(text="", **options):
        if not options.get("err"):
            said.append(text)
        if len(said) == 4:
            said.append("")
            raise KeyboardInterrupt
        echo(text, **options)

    monkeypatch.setattr(chat_command.click, "echo", interrupted)
    talk.sampling = {**GREEDY, "max_tokens": 400}
    chat_command._respond(talk, "hello")
    assert "[stopped]" in capsys.readouterr().err
    assert talk.messages[1]["content"].lstrip() == "".join(said) and len(talk.messages) == 2
    talk.sampling = GREEDY
    assert "".join(talk.ask("go on"))
    assert engine._process.in_flight == 0


def test_a_question_without_an_answer_is_forgotten(talk):
    talk.stack = {"nobody": 1.0}
    chat_command._respond(talk, "hello")
    assert talk.messages == []


def test_the_oldest_turns_give_way_when_the_context_is_full(talk, capsys):
    talk.begin("we")
    for number in range(5):
        talk.messages += [
            {"role": "user", "content": f"{number} " + "stone " * 35},
            {"role": "assistant", "content": "yes"},
        ]
    chat_command._respond(talk, "hello")
    contents = [message["content"][:2] for message in talk.messages]
    assert contents[0] == "we" and "0 " not in contents and "4 " in contents and "he" in contents
    assert "oldest turns no longer fit" in capsys.readouterr().err


def test_a_question_that_never_fits_is_refused(talk, capsys):
    chat_command._respond(talk, "stone " * 600)
    assert "the engine's context holds 512" in capsys.readouterr().err and talk.messages == []
    with pytest.raises(ContextFull):
        list(talk.ask("stone " * 600))
    assert issubclass(ContextFull, EngineError)


def test_a_saved_conversation_is_a_line_to_train_on(talk, tmp_path):
    from nightschool.datasets import load_dataset

    path = tmp_path / "talks.jsonl"
    for question in ("hello", "é \u2028 we"):
        talk.begin("be brief")
        list(talk.ask(question))
        chat_command._run_command(talk, f"/save {path}")
    conversations = load_dataset(path)
    assert [each.messages[1].content for each in conversations] == ["hello", "é \u2028 we"]
    assert [message.role for message in conversations[0].messages] == ["system", "user", "assistant"]


def test_what_a_model_writes_cannot_steer_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    chat_command._print_answer(iter([" \n", " a\x1b]0;x\x07", "\x9b31mb\tc\nd\r"]))
    assert capsys.readouterr().out == "a]0;x31mb\tc\nd\n"


class Terminal:
    """A program in a pseudo-terminal, as a person has it."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        source = Path(nightschool.__file__).parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nightschool", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
            env=os.environ | {"PYTHONPATH": str(source), "TERM": "xterm"},
        )
        os.close(slave)
        self.text = ""

    def wait_for(self, pattern: str, seconds: float = 20) -> str:
        """Read until the text after the last match fits; returns what was read."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.text, re.DOTALL)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.text!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.text += os.read(self.master, 4096).decode("utf-8", "replace")
        seen, self.text = self.text[: match.end()], self.text[match.end() :]
        return seen

    def type(self, text: str) -> None:
        time.sleep(
            0.2
        )  # readline loses a Ctrl-C between its prompt and its waiting, where no person is as quick
        os.write(self.master, text.encode())

    def close(self) -> int:
        code = self.process.wait(10)
        os.close(self.master)
        return code

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def test_a_person_at_a_terminal(folder, home, tmp_path):
    options = ["-m", str(folder / "base.gguf"), "--temperature", "0", "--max-tokens", "5"]
    with Terminal("chat", *options) as terminal:
        terminal.wait_for("/help shows the commands, Ctrl-D leaves.*> ")
        for typed, shown in [
            ("hello\n", r"hello\r\n\S.*\r\n.*> "),
            ("/system we\n", "with a system message.*> "),
            ("/unknown\n", "/save FILE.*> "),
            ("\x03", "Ctrl-D leaves.*> "),
            ("\x1b[A\x1b[A\x1b[A\n", r"hello\r\n\S.*\r\n.*> "),  # three up
            (f"/save {tmp_path / 'talk.jsonl'}\n", "added to .*> "),
        ]:
            terminal.type(typed)
            terminal.wait_for(shown)
        terminal.type("\x04")
        assert terminal.close() == 0
    messages = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert "hello" in (home / "chat_history").read_text()
    assert (home / "chat_history").stat().st_mode & 0o77 == 0


# models and pull ----------------------------------------------------------------------------------


def test_models_lists_what_can_be_used_and_names_what_cannot(folder, home):
    assert run("pull", folder / "base.gguf", "--name", "tiny").stdout == "tiny\n"
    (home / "models" / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    result = run("models")
    row = next(line for line in result.stdout.splitlines() if line.startswith("tiny"))
    assert row.split()[1:4] == ["llama", "117k", "F32"] and row.endswith(str(folder / "base.gguf"))
    assert result.stdout.startswith("NAME") and result.stderr.startswith("bad: ")
    entries = {entry["name"]: entry for entry in json.loads(run("models", "--json").stdout)}
    assert entries["tiny"]["context"] == 512 and entries["tiny"]["path"] == str(folder / "base.gguf")


def test_pull_shows_the_size_and_asks_first(monkeypatch):
    from nightschool import download

    file = download.RemoteFile("https://hub.example", "a/b", "c.gguf", 4_920_000_000, "0" * 64)
    monkeypatch.setattr(download, "look_up", lambda reference, hub: file)
    result = run("pull", "a/b")
    assert result.exit_code == 2 and "a/b/c.gguf: 4.92 GB" in result.stderr and "--yes" in result.stderr


def test_a_stopped_pull_says_how_to_go_on(monkeypatch):
    from nightschool import download

    file = download.RemoteFile("https://hub.example", "a/b", "c.gguf", 1000, "0" * 64)
    monkeypatch.setattr(download, "look_up", lambda reference, hub: file)

    def interrupted(file, *, name):
        yield Progress("pulling c.gguf", 10, 1000, "bytes")
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "pull", interrupted)
    result = run("pull", "a/b", "--yes")
    assert result.exit_code == 130 and "the same command goes on" in result.stderr and result.stdout == ""


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    result = run("pull", tmp_path / "none.gguf")
    assert result.exit_code == 1 and "There is no file" in result.stderr


# Progress -----------------------------------------------------------------------------------------


def events(n_steps):
    yield Notice("rank [8], chosen")
    yield Progress("reading", 500_000, 1_500_000, "bytes")
    for step in range(1, n_steps + 1):
        yield TrainStep(step, n_steps, 3.0 / step, 1234.0, 70.0 - step)
    yield Validation(n_steps, 0.5, 0.75)
    return "the result"


def test_a_log_gets_few_lines_and_the_last_step(monkeypatch):
    out = io.StringIO()
    assert show(events(50), Console(file=out, width=200)) == "the result"
    assert out.getvalue().splitlines() == [
        "rank [8], chosen",
        "reading: 500 kB of 1.5 MB",
        "step 1/50: loss 3.000, 1,234 tokens/s, 1 min 09 s left",
        "step 50/50: loss 0.060, 1,234 tokens/s",
        "held out, step 50: loss 0.500, 75% of tokens right",
    ]


def test_a_terminal_shows_loss_speed_and_the_time_left():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    assert show(events(4), console) == "the result"
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).splitlines()
    assert any("training" in line and "4/4  loss 0.750  1,234 tokens/s" in line for line in last)
    assert "rank [8], chosen" in out.getvalue()


def test_drawing_closes_the_work_when_it_is_interrupted():
    closed = []

    def work():
        try:
            yield Notice("one")
            yield Notice("two")
        finally:
            closed.append(True)

    class Broken(io.StringIO):
        def write(self, text):
            if "two" in text:
                raise KeyboardInterrupt
            return len(text)

    running = work()
    with pytest.raises(KeyboardInterrupt):
        show(running, Console(file=Broken()))
    assert closed


def test_a_curve_goes_from_high_to_low():
    assert curve([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert curve([1.0]) == "▁" and len(curve([float(i) for i in range(1000)])) == 16


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min")])
def test_durations_are_for_people(seconds, text):
    assert duration_text(seconds) == text
