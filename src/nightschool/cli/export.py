"""nightschool export: adapters for other programs."""

from pathlib import Path
from typing import Literal

import click

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K")


@click.command(short_help="Write an adapter as GGUF, merged GGUF, PEFT or Ollama files.")
@click.argument("stack")
@click.option(
    "--to",
    "kind",
    type=click.Choice(["gguf", "merged", "peft", "ollama"]),
    required=True,
    help="gguf: one LoRA file; merged: one model; peft: a folder; ollama: a folder with a Modelfile.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File or folder to write.")
@click.option(
    "--type",
    "type_name",
    type=click.Choice(TYPES, case_sensitive=False),
    help="How merged matrices are stored  [default: as in the base]",
)
def command(
    stack: str, kind: Literal["gguf", "merged", "peft", "ollama"], out: Path, type_name: str | None
) -> None:
    """Write STACK, an adapter or several on a base, for other programs.

    A stack of several adapters becomes one that does the same.

    \b
    Examples:
      nightschool export work --to gguf -o work.gguf
      nightschool export ember+work@0.5+style --to merged -o both.gguf --type Q8_0
      nightschool export work --to peft -o work-peft
      nightschool export work --to ollama -o work-ollama
    """
    from nightschool.cli._progress import show  # these load rich and torch
    from nightschool.export import export
    from nightschool.gguf import TensorType

    type = TensorType[type_name] if type_name else None
    if type is not None and kind in ("gguf", "peft"):
        raise click.UsageError("--type is for merged models: use it with --to merged or --to ollama.")
    show(export(stack, kind, out, type=type))
    click.echo(out)
