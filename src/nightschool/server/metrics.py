"""/metrics in Prometheus's text form: how many requests, how long they took, what the engines do."""

import time
from collections.abc import Iterable

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nightschool.server.engines import Engines

BUCKETS = (0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300)

router = APIRouter(tags=["health"])


class Measured:
    """Counts and times every request, by the route that answered it."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter(
            "nightschool_requests", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "nightschool_request_seconds",
            "Until the last byte",
            ["route"],
            buckets=BUCKETS,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begun = 0, time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._requests.labels(scope["method"], route, str(status)).inc()
            self._seconds.labels(route).observe(time.perf_counter() - begun)


class EngineFigures(Collector):
    """Read off the engines when somebody asks."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def collect(self) -> Iterable[Metric]:
        engines = self._engines
        yield GaugeMetricFamily("nightschool_chatting", "Answers under way", engines.chatting.count)
        yield GaugeMetricFamily("nightschool_engines", "llama.cpp processes kept", engines.running)
        yield CounterMetricFamily("nightschool_engine_deaths", "Connections that broke", engines.deaths)


def new_registry(engines: Engines) -> CollectorRegistry:
    """A registry of this server's own: two servers in one process do not mix."""
    registry = CollectorRegistry()
    registry.register(EngineFigures(engines))
    return registry


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(generate_latest(request.app.state.metrics), media_type=CONTENT_TYPE_LATEST)
