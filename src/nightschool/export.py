"""Take adapters elsewhere: one GGUF LoRA, a merged GGUF, PEFT's files, or a folder for Ollama.

A stack of several adapters, or one with a scale, becomes a single adapter that does the same, because most
programs take one at a time. Ollama gets a merged model: since 0.34.1 it makes none from a base and an adapter
any more (https://github.com/ollama/ollama/pull/14969), and earlier ones could not load them for newer models.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from nightschool import __version__
from nightschool.adapters import (
    LoraWeights,
    Stack,
    as_stack,
    check_fits,
    combine,
    find_adapter,
    load_weights,
    whole_folder,
    write_lora,
)
from nightschool.errors import FileFormatError, NotFound
from nightschool.events import Event, Notice
from nightschool.gguf import GGUFFile, TensorType, open_gguf
from nightschool.hub import find_base
from nightschool.merge import merge
from nightschool.paths import atomic_write
from nightschool.peft import write_peft

Kind = Literal["gguf", "merged", "peft", "ollama"]
OLLAMA_CTX = 4096  # tokens; Ollama's own choice depends on the machine


def export(text: str, kind: Kind, out: Path, *, type: TensorType | None = None) -> Iterator[Event]:
    """Write an adapter or a stack for other programs; nothing that exists is replaced.

    Args:
        text: the name of an adapter, or a stack: base+work@0.5+style.
        type: how merged matrices are stored; for `merged` and `ollama`.
    Raises:
        NotFound, AdapterMismatch: a part of the stack is not there, or does not fit its base.
        FileFormatError: `out` exists.
    """
    stack = as_stack(text)
    if not stack.adapters:
        raise NotFound(f"{text!r} names no adapter. Write its name, or BASE+ADAPTER.")
    if out.exists():
        raise FileFormatError(f"{str(out)!r} exists already: choose another place, or remove it.")
    base = open_gguf(find_base(stack.base).path)
    for name, _ in stack.adapters:
        check_fits(find_adapter(name).gguf, base)
    if kind == "gguf":
        export_gguf(stack, out)
    elif kind == "peft":
        export_peft(stack, base, out)
    elif kind == "merged":
        yield from export_merged(stack, base, out, type)
    else:
        yield from export_ollama(stack, base, out, type)
    yield Notice(f"{out} is ready. {HINTS[kind].format(out=out, base=base.path, name=out.stem)}")


HINTS: dict[Kind, str] = {
    "gguf": "Use it with `llama-server -m {base} --lora {out}`.",
    "merged": "Use it as any GGUF model: `llama-server -m {out}`.",
    "peft": "Use it with `PeftModel.from_pretrained(model, '{out}')`.",
    "ollama": "Use it with `ollama create {name} -f {out}/Modelfile`, then `ollama run {name}`.",
}


def export_gguf(stack: Stack, out: Path) -> None:
    """One GGUF LoRA: the file itself if it is one adapter at full scale."""
    if len(stack.adapters) == 1 and stack.adapters[0][1] == 1:
        with atomic_write(out) as draft:
            shutil.copyfile(find_adapter(stack.adapters[0][0]).gguf, draft)
        return
    write_lora(out, combine(loaded(stack)), name=out.stem)


def loaded(stack: Stack) -> list[tuple[LoraWeights, float]]:
    """The numbers of a stack's adapters, with their scales."""
    return [(load_weights(find_adapter(name).gguf), scale) for name, scale in stack.adapters]


def export_peft(stack: Stack, base: GGUFFile, out: Path) -> None:
    """A folder that PEFT loads."""
    lora = combine(loaded(stack))
    name = str(base.metadata.get("general.name") or stack.base)
    with whole_folder(out) as draft:
        write_peft(draft, lora.weights, alpha=lora.alpha, rank=lora.rank, metadata=base.metadata, base=name)


def export_merged(stack: Stack, base: GGUFFile, out: Path, type: TensorType | None) -> Iterator[Event]:
    """One GGUF model."""
    yield from merge(base, loaded(stack), out, type=type)


def export_ollama(stack: Stack, base: GGUFFile, out: Path, type: TensorType | None) -> Iterator[Event]:
    """A folder with a merged model and a Modelfile; the chat template stays in the model."""
    with whole_folder(out) as draft:
        yield from merge(base, loaded(stack), draft / "model.gguf", type=type)
        trained = base.metadata.get(f"{base.metadata.get('general.architecture')}.context_length", OLLAMA_CTX)
        (draft / "Modelfile").write_text(
            f"# {stack}, made by nightschool {__version__}\n"
            "FROM ./model.gguf\n"
            f"PARAMETER num_ctx {min(int(trained), OLLAMA_CTX)}\n",
            encoding="utf-8",
        )
