"""Write docs/commands.md from the help of the commands themselves: `make docs`, or `python docs/generate.py`.

tests/test_docs.py fails where the page is no longer what this makes.
"""

from collections.abc import Iterator
from pathlib import Path

import click

from nightschool.cli import main

PAGE = Path(__file__).with_name("commands.md")
WIDTH = 100
TOP = """\
# Commands

Made from `nightschool COMMAND --help` by `make docs`: change the help, not this page.

Results go to stdout, everything else (progress, questions, hints) to stderr; `--json` is there where a
program may want to read. A mistake ends in one line that says what to do and exit code 1, or 2 where the
command line itself is wrong.

A **stack** is a base with adapters on it: `ember`, `ember+work`, `ember+work@0.5+style`. The number is the
adapter's scale. The base is a name that `nightschool models` lists, or the path of a GGUF file.

| environment | |
|---|---|
| `NIGHTSCHOOL_HOME` | where everything is kept; `~/.nightschool` if not set. See [formats](formats.md). |
| `NIGHTSCHOOL_ENGINE` | another `llama-server` program to run, or the URL of one that runs already |
| `NIGHTSCHOOL_DEBUG` | set to anything, errors come with their traceback |
| `HF_ENDPOINT`, `HF_TOKEN` | for `pull`: another model hub; access to private repositories |
"""


def page() -> str:
    """The whole page."""
    parts = [TOP, section("nightschool", main)]
    parts += [section(f"nightschool {name}", command) for name, command in commands(main)]
    return "\n".join(parts)


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command below a group, each followed by its own subcommands."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command
        yield prefix + name, command
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")


def section(words: str, command: click.Command) -> str:
    """One command's help under its name."""
    context = click.Context(command, info_name=words, terminal_width=WIDTH, max_content_width=WIDTH)
    return f"## {words}\n\n```\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
