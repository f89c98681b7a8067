"""nightschool pull: fetch a model from a hub, or register a GGUF file."""

import sys
from pathlib import Path

import click


@click.command(short_help="Fetch a model from a hub, or register a GGUF file you have.")
@click.argument("model")
@click.option("--name", help="What to call it here  [default: the file's name]")
@click.option("--hub", metavar="URL", help="Another model hub  [default: $HF_ENDPOINT, or huggingface.co]")
@click.option("--yes", "-y", is_flag=True, help="Download without asking.")
def command(model: str, name: str | None, hub: str | None, yes: bool) -> None:
    """Fetch MODEL, or give a file on this machine a name.

    A repository's Q4_K_M file is taken, else its Q8_0; another quantisation follows a colon. The size is
    shown first, a download that stopped goes on, and the bytes are checked. $HF_TOKEN opens private ones.

    \b
    Examples:
      nightschool pull bartowski/SmolLM2-135M-Instruct-GGUF
      nightschool pull unsloth/Qwen3-0.6B-GGUF:Q8_0 --name qwen
      nightschool pull owner/name/file.gguf
      nightschool pull ./models/my.gguf --name mine
    """
    from nightschool.hub import register  # not needed to list the commands

    if _is_local(model):
        base = register(Path(model), name)
        click.echo(f"{base.name} is registered: {base.path}", err=True)
        click.echo(base.name)
    else:
        _download(model, name=name, hub=hub, yes=yes)


def _is_local(model: str) -> bool:
    return model.startswith((".", "/", "~")) or Path(model).is_file()


def _download(model: str, *, name: str | None, hub: str | None, yes: bool) -> None:
    from nightschool.cli._progress import show  # these load httpx and rich
    from nightschool.download import look_up, size_text
    from nightschool.hub import pull

    file = look_up(model, hub=hub)
    click.echo(f"{file.repo}/{file.path}: {size_text(file.size_bytes)}", err=True)
    if not yes:
        _ask()
    try:
        base = show(pull(file, name=name))
    except KeyboardInterrupt:
        click.echo("Stopped. What has come is kept: the same command goes on from there.", err=True)
        sys.exit(130)
    click.echo(f"Talk to it: nightschool chat -m {base.name}", err=True)
    click.echo(base.name)


def _ask() -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("Nobody is here to ask; add --yes to download without asking.")
    click.confirm("Download it?", default=True, abort=True, err=True)
