"""Names of fine-tuned models as OpenAI writes them, and the adapters they stand for.

    ft:<base>:local:<suffix>:<id>                ↔  the adapter "ft-<suffix>-<id>"; the suffix may be empty
    ft:<base>:local:<suffix>:<id>:ckpt-step-<n>  ↔  "ft-<suffix>-<id>.step-<n>": as it was after n steps

The two are made from each other without looking anything up.
"""

import re

from nightschool.errors import NotFound

PREFIX = "ft:"
ORGANISATION = "local"
MAX_SUFFIX = 40
CHECKPOINT = ":ckpt-step-"  # between a tuned model's name and a number of steps, as OpenAI writes it
SNAPSHOT = ".step-"  # the same in the name of an adapter
ADAPTER = "ft-"


def clean_suffix(text: str) -> str:
    """A suffix as it can stand in both names: letters, digits, '.', '_' and '-', at most MAX_SUFFIX."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:MAX_SUFFIX]


def tuned_name(base: str, suffix: str, id: str) -> str:
    """The name a fine-tuned model goes by."""
    return f"{PREFIX}{base}:{ORGANISATION}:{clean_suffix(suffix)}:{id}"


def adapter_name(suffix: str, id: str) -> str:
    """The adapter on the shelf that such a model is."""
    suffix = clean_suffix(suffix)
    return f"{ADAPTER}{suffix}-{id}" if suffix else f"{ADAPTER}{id}"


def read_tuned_name(name: str) -> tuple[str, str]:
    """The base and the adapter of a tuned model's name. Raises NotFound for what is none."""
    name, _, step = name.partition(CHECKPOINT)
    parts = name.removeprefix(PREFIX).rsplit(":", 3)
    if not name.startswith(PREFIX) or len(parts) != 4 or not parts[0] or not parts[3]:
        raise NotFound(f"{name!r} is no tuned model: they are named ft:BASE:{ORGANISATION}:SUFFIX:ID.")
    base, _, suffix, id = parts
    adapter = adapter_name(suffix, id)
    return base, snapshot_name(adapter, step) if step else adapter


def snapshot_name(adapter: str, step: int | str) -> str:
    """The adapter as it was after so many steps."""
    return f"{adapter}{SNAPSHOT}{step}"


def is_snapshot(adapter: str) -> bool:
    """Whether an adapter is one of a fine-tuning job's checkpoints: nobody else's name ends so."""
    return re.fullmatch(rf"{ADAPTER}.+{re.escape(SNAPSHOT)}\d+", adapter) is not None
