"""/v1/chat/completions."""

from typing import Any

from fastapi import APIRouter

from nightschool.server.models import resolve
from nightschool.server.state import Here

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions")
async def create_chat_completion(body: dict[str, Any], here: Here) -> dict[str, Any]:
    """Answer a conversation."""
    target = resolve(body.get("model", here.settings.model))
    return await here.engines.request(target, "/v1/chat/completions", body)
