"""The command line. One file per command; this one lists them and loads only the one used."""

import importlib
import os
from typing import Any

import click

from nightschool import __version__
from nightschool.errors import NightschoolError

COMMANDS = {
    "demo": "See it work: teach the embedded model a page of notes, in minutes.",
    "remember": "Make files, folders and notes searchable at once.",
    "ask": "Answer from what was remembered, with citations.",
    "sources": "List what is remembered, studied and stale.",
    "forget": "Remove a source and everything made of it.",
    "study": "Learn overnight what was remembered, prove it, put it to use.",
    "pull": "Fetch a model from a hub, or register a GGUF file you have.",
    "models": "List the bases on this machine.",
    "train": "Train an adapter on your examples.",
    "eval": "Examine a base or adapter on questions and answers.",
    "serve": "Serve the OpenAI-compatible API and the page.",
    "chat": "Talk to a base, an adapter or a stack of them.",
    "adapters": "List, show, rename or remove adapters.",
    "export": "Write an adapter as GGUF, merged GGUF, PEFT or Ollama files.",
    "convert": "Turn a Hugging Face folder or a llama2.c checkpoint into GGUF.",
    "fit": "Measure what this machine can train, and how fast.",
}


class LazyGroup(click.Group):
    """Lists every command from COMMANDS and imports the module of the one that runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"nightschool.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):  # click's own version would import every command
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NightschoolError as error:
            if os.environ.get("NIGHTSCHOOL_DEBUG"):
                raise
            raise click.ClickException(str(error)) from error


@click.command(cls=LazyGroup)
@click.version_option(__version__)
def main() -> None:
    """Send your language model to night school: teach the GGUF you run what you know, on this CPU.

    \b
    Start here:
      nightschool demo                               all of it in a few minutes
      nightschool remember notes/                    then: nightschool ask "…"
      nightschool train examples.jsonl --name work   an adapter from your examples
      nightschool chat -m ember+work                 talk to the result
    """
