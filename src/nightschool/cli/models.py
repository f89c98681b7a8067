"""nightschool models: the bases on this machine."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from nightschool.errors import NightschoolError

if TYPE_CHECKING:
    from nightschool.hub import BaseInfo

HEADER = ("NAME", "ARCHITECTURE", "PARAMETERS", "TYPE", "SIZE", "CONTEXT", "WHERE")
RIGHT = {"PARAMETERS", "SIZE", "CONTEXT"}


@click.command(short_help="List the bases on this machine.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(as_json: bool) -> None:
    """List the bases on this machine: the shipped one, those pulled, and files registered where they lie.

    \b
    Examples:
      nightschool models
      nightschool models --json
    """
    infos = _describe_all()
    if as_json:
        click.echo(json.dumps([asdict(info) for info in infos], indent=1, ensure_ascii=False))
        return
    if infos:
        click.echo(_table([HEADER, *map(_row, infos)]))
    click.echo(f"`nightschool pull` fetches {'others' if infos else 'one: there are none yet'}.", err=True)


def _describe_all() -> "list[BaseInfo]":
    """All that can be read; the others are named on stderr."""
    from nightschool.hub import describe, list_bases  # not needed to list the commands

    infos = []
    for base in list_bases():
        try:
            infos.append(describe(base))
        except NightschoolError as error:
            click.echo(f"{base.name}: {error}", err=True)
    return infos


def _row(info: "BaseInfo") -> tuple[str, ...]:
    from nightschool.download import size_text

    return (
        info.name,
        info.architecture,
        count_text(info.parameters),
        info.type,
        size_text(info.size_bytes),
        f"{info.context:,}",
        info.path,
    )


def count_text(count: float) -> str:
    """A number of weights for people: 940k, 3.1M, 1.24B."""
    for unit, digits in (("", 0), ("k", 0), ("M", 1)):
        if count < 1000:
            return f"{count:.{digits}f}{unit}"
        count /= 1000
    return f"{count:.2f}B"


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if title in RIGHT else cell.ljust(width)
            for cell, width, title in zip(row, widths, rows[0], strict=True)
        ).rstrip()
        for row in rows
    )
