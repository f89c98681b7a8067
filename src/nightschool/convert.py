"""Turn a model of another kind into a GGUF: a llama2.c checkpoint, or a Hugging Face folder."""

from collections.abc import Iterator
from pathlib import Path

from nightschool.conversion import DEFAULT_TYPE, SourceModel, write_model
from nightschool.errors import FileFormatError, NotFound
from nightschool.events import Event
from nightschool.gguf import MAGIC, TensorType
from nightschool.huggingface import read_huggingface
from nightschool.llama2c import is_llama2c, read_llama2c


def convert(
    source: Path, destination: Path, *, type: TensorType = DEFAULT_TYPE, tokenizer: Path | None = None
) -> Iterator[Event]:
    """Write `source` as a GGUF; yields what was chosen, and progress in bytes.

    `type` is for the matrices; `tokenizer` names a llama2.c vocabulary that is not beside its checkpoint.
    Raises NotFound, FileFormatError, or UnsupportedModel; the destination is then as it was.
    """
    yield from write_model(read_source(source, tokenizer), destination, type=type)


def read_source(source: Path, tokenizer: Path | None = None) -> SourceModel:
    """Find out what `source` is and read it, tensors excepted."""
    if source.is_dir():
        return read_huggingface(source)
    if not source.is_file():
        raise NotFound(f"There is no file or folder {str(source)!r}.")
    with source.open("rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            raise FileFormatError(f"{str(source)!r} is a GGUF already.")
    if is_llama2c(source):
        return read_llama2c(source, tokenizer)
    raise FileFormatError(
        f"{str(source)!r} is neither a llama2.c checkpoint nor a Hugging Face folder "
        "(one with config.json and *.safetensors)."
    )
