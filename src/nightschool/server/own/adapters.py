"""The shelf of adapters: what their exams said, which version is in use, and files for other programs."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import FileResponse

from nightschool import promotion
from nightschool.adapters import Adapter, find_adapter, list_adapters
from nightschool.forget import card_sources
from nightschool.lessonbook import Answered, read_exam
from nightschool.library import short_label
from nightschool.promotion import NEXT, PREVIOUS, SWAP
from nightschool.server.database import Store
from nightschool.server.own import shapes
from nightschool.server.own.downloads import download
from nightschool.server.state import Here

AdapterName = Annotated[str, Path(pattern=shapes.NAME)]

router = APIRouter()


@router.get("/adapters")
def adapters() -> shapes.Adapters:
    """List the adapters that are in use and the candidates beside them."""
    every = list_adapters(snapshots=False)
    names = {adapter.name for adapter in every}
    shown = [described(adapter, names) for adapter in every if not adapter.name.endswith((PREVIOUS, SWAP))]
    return shapes.Adapters(adapters=shown)


def described(adapter: Adapter, names: set[str]) -> shapes.Adapter:
    """What an adapter's card says, for people; `names` are all that are on the shelf."""
    card, name = adapter.card, adapter.name
    exam = card.get("exam") if isinstance(card.get("exam"), dict) else {}
    assert isinstance(exam, dict)
    base = str(card.get("base", {}).get("name", "?"))
    is_candidate = name.endswith(NEXT)
    return shapes.Adapter(
        name=name,
        model=f"{base}+{name}",
        base=base,
        bytes=adapter.size_bytes,
        rank=card.get("rank"),
        promoted=not is_candidate,
        reasons=[str(reason) for reason in card.get("not_promoted_because", [])],
        recall_before=exam.get("recall_before"),
        recall_after=exam.get("recall_after"),
        recall_with_notes=exam.get("recall_with_notes"),
        forgetting=exam.get("forgetting"),
        fabrication=exam.get("fabrication"),
        made_at=_time(card.get("created")),
        sources=[short_label(source) for source in sources_of(adapter)],
        can_promote=is_candidate or name + NEXT in names,
        can_roll_back=not is_candidate and name + PREVIOUS in names,
        problem=_problem(card),
    )


def sources_of(adapter: Adapter) -> list[str]:
    """The sources of a study, or the files of a training."""
    listed = adapter.card.get("sources", [])
    files = [each["file"] for each in listed if isinstance(each, dict) and isinstance(each.get("file"), str)]
    return [name for name in card_sources(adapter) if name] + files


def _time(text: object) -> int | None:
    with suppress(TypeError, ValueError):
        return int(datetime.fromisoformat(text).timestamp())  # type: ignore[arg-type]
    return None


def _problem(card: Mapping[str, Any]) -> str | None:
    return "Its card is damaged: remove the adapter, or mend the file." if "problem" in card else None


@router.get("/adapters/{name}")
def adapter(name: AdapterName, db: Store) -> shapes.AdapterDetail:
    """Show an adapter: its card, and every question of its exam with both answers."""
    found = find_adapter(name)
    names = {each.name for each in list_adapters()}
    answers = read_exam(db, found)
    return shapes.AdapterDetail(
        **described(found, names).model_dump(),
        card=without_paths(found.card),
        exam=[shapes.ExamQuestion(**_shown(answer)) for answer in answers],
        topics=topics(answers),
    )


def _shown(answer: Answered) -> dict[str, Any]:
    return vars(answer) | {"topic": None if answer.topic is None else short_label(answer.topic)}


def topics(answers: Sequence[Answered]) -> list[shapes.Topic]:
    """Recall before and after for each source, those with the most questions first."""
    by_topic: dict[str, list[Answered]] = {}
    for answer in answers:
        by_topic.setdefault(short_label(answer.topic or "other"), []).append(answer)
    return [
        shapes.Topic(
            name=name,
            questions=len(group),
            recall_before=None
            if any(answer.right_before is None for answer in group)
            else sum(bool(answer.right_before) for answer in group) / len(group),
            recall_after=sum(answer.right_after for answer in group) / len(group),
        )
        for name, group in sorted(by_topic.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    ]


def without_paths(value: Any) -> Any:
    """A card without what says where files lie on this machine."""
    if isinstance(value, dict):
        return {key: without_paths(each) for key, each in value.items() if key != "path"}
    if isinstance(value, list):
        return [without_paths(each) for each in value]
    if isinstance(value, str) and os.path.isabs(value):
        return PurePath(value).name
    return value


# Which version is in use --------------------------------------------------------------------------


@router.post("/adapters/{name}/promote")
def promote(name: AdapterName, db: Store) -> shapes.Adapter:
    """Put the candidate of an adapter into use, whatever its exam said."""
    return _now(promotion.promote(db, name.removesuffix(NEXT)))


@router.post("/adapters/{name}/rollback")
def roll_back(name: AdapterName, db: Store) -> shapes.Adapter:
    """Go back to what an adapter was before; again: swap back."""
    return _now(promotion.roll_back(db, name))


def _now(adapter: Adapter) -> shapes.Adapter:
    return described(adapter, {each.name for each in list_adapters()})


@router.delete("/adapters/{name}")
def remove(name: AdapterName, db: Store) -> shapes.Removed:
    """Delete an adapter with its earlier version and its candidate; a candidate alone, where it is named."""
    find_adapter(name)
    if name.endswith((NEXT, PREVIOUS, SWAP)):
        promotion.drop(db, name)
    else:
        promotion.retire(db, name)
    return shapes.Removed(removed=name)


# Elsewhere ----------------------------------------------------------------------------------------


@router.get("/adapters/{name}/export", response_class=FileResponse)
async def export(
    name: AdapterName,
    here: Here,
    format: Annotated[
        shapes.FORMAT,
        Query(description="gguf: the LoRA; peft: its files, zipped; merged: a model; modelfile: for Ollama"),
    ] = "gguf",
) -> FileResponse:
    """Download an adapter for other programs."""
    return await download(find_adapter(name), format, here)
