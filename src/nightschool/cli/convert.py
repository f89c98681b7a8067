"""nightschool convert: turn a Hugging Face folder or a llama2.c checkpoint into GGUF."""

from pathlib import Path

import click

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K")


@click.command(short_help="Turn a Hugging Face folder or a llama2.c checkpoint into GGUF.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--type",
    "type_name",
    type=click.Choice(TYPES, case_sensitive=False),
    default="Q8_0",
    show_default=True,
    help="How matrices are stored; those that it does not fit get the next better one.",
)
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, path_type=Path, dir_okay=False),
    help="The vocabulary of a llama2.c checkpoint  [default: tok<size>.bin or tokenizer.bin beside it]",
)
def command(source: Path, destination: Path, type_name: str, tokenizer: Path | None) -> None:
    """Write SOURCE, a Hugging Face folder or a llama2.c checkpoint, as the GGUF file DESTINATION.

    \b
    Examples:
      nightschool convert SmolLM2-135M-Instruct smollm2.gguf
      nightschool convert stories15M.bin stories.gguf --tokenizer tokenizer.bin
    """
    from nightschool.cli._progress import show  # these two load rich and torch
    from nightschool.convert import convert
    from nightschool.gguf import TensorType

    show(convert(source, destination, type=TensorType[type_name], tokenizer=tokenizer))
    click.echo(destination)
