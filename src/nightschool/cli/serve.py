"""nightschool serve: the models on this machine for programs and, as a page, for people."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from nightschool.settings import ServeSettings

FLAGS = {
    "model": ("-m", "--model"),
    "origins": ("--origin", "origins"),
}
TYPES: dict[str, Any] = {
    "port": click.IntRange(0, 65535),
    "slots": click.IntRange(1, 64),
    "ctx": click.IntRange(0, 1 << 20),
    "threads": click.IntRange(0, 1024),
    "nice": click.IntRange(0, 19),
}


def serve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of ServeSettings."""
    for field in reversed(fields(ServeSettings)):
        flags = FLAGS.get(field.name, ("--" + field.name.replace("_", "-"),))
        option = click.option(
            *flags,
            type=TYPES.get(field.name, click.STRING),
            default=field.default,
            multiple=field.name == "origins",
            show_default=field.default not in ("", (), 0),
            help=field.metadata["help"],
            envvar="NIGHTSCHOOL_API_KEY" if field.name == "api_key" else None,
            show_envvar=True,
        )
        command = option(command)
    return command


@click.command(short_help="Serve the OpenAI-compatible API and the page.")
@serve_options
def command(**given: Any) -> None:
    """Serve chats, embeddings and fine-tuning to programs that know OpenAI's API, and a page to people.

    Only this machine can reach it, unless --host says otherwise; then an API key is needed. A model is a
    base, a stack like ember+work@0.5, or an adapter; with :memory behind its name it looks things up.

    \b
    Examples:
      nightschool serve
      nightschool serve -m ember+work --port 8000
      NIGHTSCHOOL_API_KEY=… nightschool serve --host 0.0.0.0
      nightschool serve --origin https://notes.example
    """
    from nightschool.server.listen import serve  # this loads FastAPI

    settings = ServeSettings(**given)
    try:
        serve(settings, lambda url: _say(url, settings))
    except KeyboardInterrupt:
        pass
    click.echo("Stopped.", err=True)


def _say(url: str, settings: ServeSettings) -> None:
    """Where it is, and three lines to try; the key is never printed."""
    key = "YOUR KEY" if settings.api_key else "none"
    header = f" -H 'Authorization: Bearer {key}'" if settings.api_key else ""
    question = f'{{"model": "{settings.model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    click.echo(f"Nightschool serves {settings.model} at {url} (Ctrl-C ends it). Three things to try:\n")
    click.echo(f"  open   {url}/")
    click.echo(f"  curl   {url}/v1/chat/completions{header} --json '{question}'")
    click.echo(f'  python OpenAI(base_url="{url}/v1", api_key="{key}")')
