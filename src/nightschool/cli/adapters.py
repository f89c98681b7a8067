"""nightschool adapters: what is on the shelf."""

import json
from collections.abc import Iterator
from typing import Any

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(invoke_without_command=True, short_help="List, show, rename or remove adapters.")
@as_json
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the adapters on this machine, or show, rename or remove one.

    \b
    Examples:
      nightschool adapters
      nightschool adapters show work
      nightschool adapters rename work work-2026
      nightschool adapters remove work
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command, as_json=as_json)


@command.command("list", short_help="List all adapters.")
@as_json
def list_command(as_json: bool) -> None:
    """List all adapters: name, base, rank, size, date. Checkpoints are listed with their fine-tuning job."""
    from nightschool.adapters import list_adapters  # reads GGUF: numpy

    adapters = list_adapters(snapshots=False)
    if as_json:
        click.echo(json.dumps([described(adapter) for adapter in adapters], indent=1))
        return
    if not adapters:
        click.echo("There are no adapters yet. `nightschool train` makes them.")
        return
    rows = [("NAME", "BASE", "RANK", "SIZE", "MADE")]
    for adapter in adapters:
        card = adapter.card
        made = str(card.get("created", "?"))[:10]
        base, rank = card.get("base", {}).get("name", "?"), str(card.get("rank", "?"))
        rows.append((adapter.name, base, rank, f"{adapter.size_bytes / 1e6:.1f} MB", made))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def described(adapter: Any) -> dict[str, Any]:
    """An adapter as JSON."""
    return {
        "name": adapter.name,
        "path": str(adapter.gguf),
        "size_bytes": adapter.size_bytes,
        "card": adapter.card,
    }


@command.command(short_help="Show the card of an adapter.")
@click.argument("name")
@as_json
def show(name: str, as_json: bool) -> None:
    """Show what the adapter NAME says of itself."""
    from nightschool.adapters import find_adapter  # reads GGUF: numpy

    adapter = find_adapter(name)
    if as_json:
        click.echo(json.dumps(described(adapter), indent=1))
        return
    for key, value in flat({"name": adapter.name, "file": str(adapter.gguf), **adapter.card}):
        click.echo(f"{key:<24} {value}")


def flat(card: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A card as lines: nested names joined by dots."""
    for key, value in card.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value)


@command.command(short_help="Give an adapter another name.")
@click.argument("old")
@click.argument("new")
def rename(old: str, new: str) -> None:
    """Rename the adapter OLD to NEW."""
    from nightschool.adapters import rename_adapter  # reads GGUF: numpy

    rename_adapter(old, new)
    click.echo(f"{old} is now {new}.")


@command.command(short_help="Put a studied adapter into use that was not promoted.")
@click.argument("name")
def promote(name: str) -> None:
    """Put the candidate that the last study left beside NAME into use, whatever its exam said."""
    from nightschool.promotion import promote as put_into_use  # these read GGUF: numpy
    from nightschool.store import open_store

    put_into_use(open_store(), name)
    click.echo(f"{name} is the new one; `nightschool adapters rollback {name}` goes back.")


@command.command(short_help="Go back to what an adapter was before its last study.")
@click.argument("name")
def rollback(name: str) -> None:
    """Swap the adapter NAME with the one that the last promotion replaced; again: swap back."""
    from nightschool.promotion import roll_back  # these read GGUF: numpy
    from nightschool.store import open_store

    adapter = roll_back(open_store(), name)
    click.echo(f"{name} is the one made {adapter.card.get('created', 'before')}.")


@command.command(short_help="Delete an adapter.")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(name: str, yes: bool) -> None:
    """Delete the adapter NAME from this machine, with the checkpoints of its fine-tuning job."""
    from nightschool.adapters import find_adapter, remove_adapter, with_snapshots  # these read GGUF: numpy

    find_adapter(name)
    every = with_snapshots(name)
    if not yes:
        size = sum(adapter.size_bytes for adapter in every) / 1e6
        beside = f" and its {len(every) - 1} checkpoints" if len(every) > 1 else ""
        click.confirm(f"Delete the adapter {name}{beside} ({size:.1f} MB)?", abort=True)
    for adapter in every:
        remove_adapter(adapter.name)
    click.echo(f"{name} is gone.")
