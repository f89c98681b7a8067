"""nightschool train: train an adapter on your examples."""

import json
import signal
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any

import click

from nightschool.cli._settings import train_options, train_settings
from nightschool.recipes import RECIPES


@click.command(short_help="Train an adapter on your examples.")
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "-m", "--model", "base", default="ember", show_default=True, help="Base: a name or a GGUF file."
)
@click.option("--name", help="What the adapter will be called  [default: the data file's name]")
@click.option(
    "--recipe", type=click.Choice(sorted(RECIPES)), help="Published settings by name; see docs/data.md."
)
@click.option(
    "--format", "data_format", help="Force a data format instead of recognising it: see docs/data.md."
)
@click.option("--columns", help="For tables: which column is what, as prompt=Frage,completion=Antwort.")
@click.option(
    "--valid", type=click.Path(path_type=Path), help="Held-out examples, measured after each epoch."
)
@click.option(
    "--rehearsal-data", type=click.Path(path_type=Path), help="Examples of what must not be forgotten."
)
@click.option("--resume", is_flag=True, help="Go on with the unfinished run of this very command.")
@click.option("--restart", is_flag=True, help="Begin that run again.")
@click.option("--replace", "replace_old", is_flag=True, help="Take the place of an adapter of the same name.")
@click.option("--json", "as_json", is_flag=True, help="Print the adapter's card as one line of JSON.")
@train_options
def command(data: tuple[Path, ...], base: str, as_json: bool, **options: Any) -> None:
    """Train an adapter on the examples in DATA: chat JSONL, Alpaca or ShareGPT JSON, CSV, or plain text.

    With no options the settings are chosen from the base and the data, and printed. Ctrl-C saves; the same
    command with --resume goes on and ends in the same adapter.

    \b
    Examples:
      nightschool train examples.jsonl --name work
      nightschool train alpaca_data.json -m SmolLM2-135M --recipe alpaca
      nightschool train notes.csv --columns prompt=Question,completion=Answer --epochs 5
      nightschool train examples.jsonl --name work --resume
    """
    settings = train_settings(options)
    from nightschool.cli._progress import show  # these load rich and torch
    from nightschool.datasets import parse_columns
    from nightschool.runs import Order, carry_out, find_run

    order = Order(
        base=base,
        data=data,
        name=options["name"] or data[0].stem,
        settings=settings,
        recipe=options["recipe"],
        format=options["data_format"],
        columns=parse_columns(options["columns"]) if options["columns"] else None,
        valid=options["valid"],
        rehearsal=options["rehearsal_data"],
    )
    run = find_run(
        order, resume=options["resume"], restart=options["restart"], replace_old=options["replace_old"]
    )
    adapter: Any = show(
        until_interrupted(carry_out(order, run), "Add --resume to the same command to go on.")
    )
    if as_json:
        click.echo(json.dumps({"adapter": adapter.name, "folder": str(adapter.folder), **adapter.card}))
        return
    training = adapter.card["training"]
    click.echo(
        f"{adapter.name}: {training['steps']} steps, {training['tokens']:,} tokens "
        f"in {training['seconds']:,.0f} s, loss {training['first_loss']:.3f} → {training['last_loss']:.3f}"
    )
    click.echo(adapter.folder)
    click.echo(f"Talk to it: nightschool chat -m {base}+{adapter.name}", err=True)


def until_interrupted(events: Any, advice: str) -> Generator[Any, None, Any]:
    """Pass events on; after Ctrl-C stop between two of them, so that the work can save itself.

    A second Ctrl-C ends at once.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                return end.value
            yield event
            if asked:
                events.close()
                raise click.ClickException(f"Stopped; what was done is saved. {advice}")
    finally:
        signal.signal(signal.SIGINT, before)
