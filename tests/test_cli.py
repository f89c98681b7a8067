"""The command line from outside: help that costs nothing, mistakes that end in one line, every entrance."""

import json
import os
import shlex
import subprocess
import sys
import time
from importlib.metadata import entry_points

import click
import pytest
from click.testing import CliRunner

import nightschool
from nightschool.cli import COMMANDS, main

HELP = [[], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
HEAVY = {"torch", "xllamacpp", "rich", "httpx", "numpy", "psutil", "safetensors"}
SCRIPT = [sys.executable, "-m", "nightschool"]


def run(*arguments, **environment):
    """The real program in a process of its own."""
    return subprocess.run(
        [*SCRIPT, *arguments], capture_output=True, text=True, env=os.environ | environment, check=False
    )


def commands(group=main, path=()):
    """Every command and subcommand: (words that call it, the command)."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = list(commands())
NAMES = [" ".join(words) for words, _ in ALL]


def test_help_lists_every_command():
    shown = CliRunner().invoke(main, ["--help"]).output
    for name, sentence in COMMANDS.items():
        assert f"  {name}  " in shown
        assert sentence.split()[0] in shown
    assert "nightschool demo" in shown  # where to start


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
)
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys, nightschool.cli\n"
        "try: nightschool.cli.main()\n"
        "except SystemExit: pass\n"
        "print('loaded', *{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    print(f"{time.perf_counter() - started:.2f} s")  # under 0.5 s on an idle machine; shown by pytest -rP
    assert "Traceback" not in done.stderr
    assert not HEAVY & set(done.stderr.rsplit("loaded", 1)[1].split())


def test_the_sentence_in_the_list_is_the_commands_own():
    for words, command in ALL:
        if len(words) == 1:
            assert command.get_short_help_str(limit=200) == COMMANDS[words[0]]


@pytest.mark.parametrize(("words", "command"), ALL, ids=NAMES)
def test_every_command_explains_itself(words, command):
    shown = CliRunner().invoke(main, [*words, "--help"])
    assert shown.exit_code == 0
    assert command.help
    if len(words) == 1:
        assert f"Examples:\n    nightschool {words[0]}" in shown.output
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.opts[0]} says nothing of itself"


@pytest.mark.parametrize(("words", "command"), ALL, ids=NAMES)
def test_every_example_in_the_help_can_be_typed(words, command):
    for line in (command.help or "").splitlines():
        if line.strip().startswith("nightschool "):
            parse(line)


def parse(line):
    """Read a command line as click would, without running it; raises click.UsageError."""
    words = shlex.split(line.split("  #")[0].split(" < ")[0])[1:]
    command, context = main, click.Context(main)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        if found is None:
            raise click.UsageError(f"there is no command {words[0]!r}")
        command, context = found, click.Context(found)
        words = words[1:]
    command.make_parser(context).parse_args(words)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["teach"], "No such command 'teach'"),
        (["train", "x.jsonl", "--sped", "3"], "No such option"),
        (["chat", "-m", "nobody", "hello"], "There is no base 'nobody'"),
        (["eval", "nothing.jsonl"], "There is no exam 'nothing.jsonl'"),
        (["export", "nobody", "--to", "gguf", "-o", "out.gguf"], "nobody"),
        (["adapters", "show", "nobody"], "There is no adapter 'nobody'"),
        (["convert", "nothing", "out.gguf"], "nothing"),
    ],
)
def test_a_mistake_ends_in_one_line_and_a_code(arguments, sentence):
    done = run(*arguments)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1
    assert sentence in said[0]
    assert "Traceback" not in done.stderr


def test_debugging_shows_where_an_error_came_from():
    done = run("adapters", "show", "nobody", NIGHTSCHOOL_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "nightschool.errors.NotFound" in done.stderr


def test_a_command_that_needs_more_words_says_which():
    done = run("export", "work")
    assert done.returncode == 2
    assert "Missing option '--to'" in done.stderr


def test_the_version_is_the_packages():
    assert nightschool.__version__ in run("--version").stdout


def test_the_installed_script_is_the_same_program():
    (script,) = entry_points(group="console_scripts", name="nightschool")
    assert script.load() is main


def test_a_home_that_was_never_used_stays_untouched_by_looking(home):
    for arguments in (["models"], ["adapters"], ["--help"]):
        assert run(*arguments).returncode == 0
    assert not list(home.iterdir())


def test_lists_are_json_where_a_program_asks(home):
    models = json.loads(run("models", "--json").stdout)
    assert [model["name"] for model in models] == ["ember"]
    assert json.loads(run("adapters", "--json").stdout) == []
