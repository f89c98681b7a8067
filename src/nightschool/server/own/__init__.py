"""Our own API, /v1/nightschool: what the page needs and OpenAI has no words for. shapes.py has its JSON.

    GET    /status                              Status
    GET    /bases                               Bases
    GET    /sources                             Sources
    POST   /sources                             multipart files=… (several), or JSON Note → Remembered
    GET    /sources/{id}                        SourceText
    DELETE /sources/{id}?rebuild=true|false     Forgotten
    POST   /ask                                 Question → Answer
    POST   /study/plan                          StudyOrder → StudyPlan; nothing is queued
    POST   /study                               StudyOrder → Job
    GET    /jobs                                Jobs, newest first
    GET    /jobs/{id}                           Job
    GET    /jobs/{id}/events?after=0&limit=100  JobEvents
    POST   /jobs/{id}/cancel|pause|resume       Job
    GET    /adapters                            Adapters
    GET    /adapters/{name}                     AdapterDetail
    POST   /adapters/{name}/promote|rollback    Adapter
    DELETE /adapters/{name}                     Removed
    GET    /adapters/{name}/export?format=gguf|peft|modelfile|merged   a download

Errors have OpenAI's body: {"error": {"message", "type", "param", "code"}}.
"""

from fastapi import APIRouter

from nightschool.server.own import adapters, jobs, machine, sources, study

router = APIRouter(prefix="/v1/nightschool", tags=["nightschool"])
for area in (machine, sources, study, jobs, adapters):
    router.include_router(area.router)
