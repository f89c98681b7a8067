"""Where things lie: the home folder, the package's own data; and files written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path


def home() -> Path:
    """The data home: $NIGHTSCHOOL_HOME, or ~/.nightschool."""
    return Path(os.environ.get("NIGHTSCHOOL_HOME") or Path.home() / ".nightschool").expanduser()


def models_dir() -> Path:
    """Pulled and registered bases."""
    return home() / "models"


def adapters_dir() -> Path:
    """One folder an adapter."""
    return home() / "adapters"


def runs_dir() -> Path:
    """One folder a training run: settings, checkpoint, log."""
    return home() / "runs"


def package_data(name: str) -> Path:
    """A file or folder shipped inside the package."""
    return Path(str(files("nightschool"))) / "data" / name


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it over `path` when the block ends well, else remove it.

    The bytes are on the disk before the name changes: a kill at any moment leaves the old file or the new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file, whole or not at all."""
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")
