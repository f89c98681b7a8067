"""nightschool fit: measure what this machine can train, and how fast."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nightschool.fit import Fit


@click.command(short_help="Measure what this machine can train, and how fast.")
@click.option("--threads", default=0, type=click.IntRange(0), help="CPU threads  [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="A JSON line for each model.")
def command(threads: int, as_json: bool) -> None:
    """Measure, for the bases on this machine and for well-known sizes, memory and training speed.

    Takes about half a minute; let nothing else run meanwhile.

    \b
    Examples:
      nightschool fit
      nightschool fit --json
    """
    from collections.abc import Iterator  # these load rich and torch

    from nightschool.cli._progress import show
    from nightschool.events import Event
    from nightschool.fit import Fit, measure
    from nightschool.memory import free_bytes

    found: list[Fit] = []

    def events() -> Iterator[Event]:
        for event in measure(threads=threads):
            if isinstance(event, Fit):
                found.append(event)
            else:
                yield event

    show(events())
    if as_json:
        for fit in found:
            click.echo(json.dumps(asdict(fit) | {"tokens_an_evening": fit.tokens_an_evening}))
        return
    _table(found)
    click.echo(
        "\nAn evening is four hours; lessons of 256 tokens, half of them learned; LoRA rank 16 on all. "
        f"{free_bytes() / 1e9:.1f} GB of memory are free now."
    )


def _table(found: list["Fit"]) -> None:
    from rich.console import Console  # rich is slow to load
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title, side in (("model", "left"), ("weights", "right"), ("held as", "left"), ("memory", "right"),
                        ("tokens/s", "right"), ("tokens an evening", "right")):  # fmt: skip
        table.add_column(title, justify="left" if side == "left" else "right", header_style="bold")
    for fit in found:
        speed = (f"{fit.tokens_per_s:,.0f}", f"{fit.tokens_an_evening:,}") if fit.fits else ("too large", "")
        size = f"{fit.parameters / 1e6:,.0f} M"
        table.add_row(fit.name, size, fit.precision, f"{fit.memory_bytes / 1e9:.1f} GB", *speed)
    Console().print(table)
