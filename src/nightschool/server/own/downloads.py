"""Adapters as files to download. They are made in a temporary folder, which goes with the last byte.

Merging needs torch, which the server never loads: the `export` command does it in a process of its own.
"""

import asyncio
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from nightschool.adapters import Adapter
from nightschool.errors import NightschoolError
from nightschool.paths import home
from nightschool.peft import CONFIG, MODEL
from nightschool.server.own import shapes
from nightschool.server.state import State

GGUF_TYPE, ZIP_TYPE = "application/octet-stream", "application/zip"
PREFIX = "export-"
OLD_S = 24 * 3600  # older ones were left by a server that was killed: the next download removes them


async def download(adapter: Adapter, format: shapes.FORMAT, here: State) -> FileResponse:
    """The response that sends an adapter in a format. Raises NightschoolError where it cannot be made."""
    if format == "gguf":
        return FileResponse(adapter.gguf, media_type=GGUF_TYPE, filename=f"{adapter.name}.gguf")
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_exports()))
    try:
        if format == "peft":
            files = [adapter.folder / CONFIG, adapter.folder / MODEL]
            file = await asyncio.to_thread(_zipped, files, folder / f"{adapter.name}-peft.zip")
        elif format == "merged":
            file = folder / f"{adapter.name}.gguf"
            await _run_export(adapter.name, "merged", file, here)
        else:
            await _run_export(adapter.name, "ollama", folder / "ollama", here)
            files = [folder / "ollama" / "Modelfile", folder / "ollama" / "model.gguf"]
            file = await asyncio.to_thread(_zipped, files, folder / f"{adapter.name}-ollama.zip")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return FileResponse(
        file,
        media_type=ZIP_TYPE if file.suffix == ".zip" else GGUF_TYPE,
        filename=file.name,
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )


def _exports() -> Path:
    """The folder for them, on the disk that has room for models."""
    folder = home() / "exports"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in folder.glob(f"{PREFIX}*"):
        if left.stat().st_mtime < time.time() - OLD_S:
            shutil.rmtree(left, ignore_errors=True)
    return folder


def _zipped(files: list[Path], target: Path) -> Path:
    """The files in one, not compressed: weights hardly are."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            if not file.is_file():
                raise NightschoolError(f"The adapter has no {file.name}: it was made elsewhere.")
            archive.write(file, file.name)
    return target


async def _run_export(name: str, kind: str, out: Path, here: State) -> None:
    """`nightschool export` in a process of its own; it ends with the request."""
    arguments = ["-m", "nightschool", "export", name, "--to", kind, "-o", str(out)]
    async with here.merging:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, said = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or ["It ended without a word."]
        raise NightschoolError(f"The adapter could not be exported: {lines[-1]}")
