"""What does the server cost beside the llama.cpp that it runs, and does it last?

    python bench/bench_server.py                    overhead and switching, a model of 135M's shape
    python bench/bench_server.py --base ember       the same on the embedded base, which is the worst case
    python bench/bench_server.py --part training    chats while a fine-tuning job runs
    python bench/bench_server.py --part soak        1,000 chats, some of them left, 50 engine kills

Overhead: the same requests go in turn to a bare llama.cpp (this program's engine, with its port and key) and
to `nightschool serve`, each in a process of its own, as streams read by the same client. First token: the
time until the first piece of text, the median over --requests. Tokens/s: all tokens of 1 and of 4 chats side
by side over the time that they take together; the median of --repeats rounds, and the difference is taken
within a round. The quartiles of the differences stand beside; where a machine scatters more than the server
costs, the CPU time that the server itself uses for a token says more. Nothing else may run meanwhile.

Switching: an adapter appears on the shelf while a chat streams; the time until another chat has its first
token from it, and how many requests failed.

Training: a fine-tuning job runs, which holds while somebody chats. Tokens/s of a long chat from two seconds
after it was asked for, against the same chat without a job; between the chats the job must get on.

Soak: chats of random length over 8 connections, a third of them left half-way, while engines are killed. A
chat may end with an error only where a kill met it. At the end nobody waits, one engine is left, and the
server's open files and memory are compared with those after the first tenth.

Theory: a token costs the server one read, one substitution and one write, some 0.1 ms of Python; a chat a
parsed body, a resolved name and a connection that is already open. Where a model is slower than a few hundred
tokens a second that is hidden, unless it takes every core: then the server's share is its cost.

Prints a table, then one JSON line.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import numpy as np
import psutil

from nightschool.adapters import save_adapter
from nightschool.decoders import trainable_shapes
from nightschool.engine import Engine
from nightschool.gguf import TensorType, open_gguf, write_gguf
from nightschool.hub import find_base
from nightschool.shapes import SHAPES, write_random

NAME = "bench"
CHAT = "/v1/chat/completions"
SETTLED_S = 2.0


@dataclass(frozen=True)
class Side:
    """Somebody who answers chats."""

    name: str
    url: str
    headers: dict[str, str]
    extra: dict[str, Any]


@dataclass
class Heard:
    """One streamed answer, as the client saw it."""

    first_s: float = 0.0
    total_s: float = 0.0
    tokens: int = 0
    failed: str = ""
    late: int = 0  # tokens from SETTLED_S on


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="nightschool-bench-") as folder:
        os.environ["NIGHTSCHOOL_HOME"] = folder
        prepare(Path(folder), options)
        with served(options) as (process, url):
            result = asyncio.run(measure(process, url, options))
    print_table(result)
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--part", choices=("overhead", "switching", "training", "soak", "all"), action="append"
    )
    parser.add_argument("--base", default="135M", help="a shape to measure on, or ember")
    parser.add_argument("--requests", type=int, default=40, help="for the first token")
    parser.add_argument("--tokens", type=int, default=200, help="of each chat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chats", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    options.part = set(options.part or ("overhead", "switching"))
    if "all" in options.part:
        options.part = {"overhead", "switching", "training", "soak"}
    return options


def prepare(home: Path, options: argparse.Namespace) -> None:
    """Put the base into the home under one name, whatever it is."""
    ember = find_base("ember").path
    (home / "models").mkdir()
    target = home / "models" / f"{NAME}.gguf"
    if options.base == "ember":
        shutil.copy(ember, target)
        return
    vocabulary = {
        key: value for key, value in open_gguf(ember).metadata.items() if key.startswith("tokenizer.")
    }
    count = len(vocabulary["tokenizer.ggml.tokens"])
    random_model = write_random(
        home / "random.gguf", replace(SHAPES[options.base], vocabulary=count), TensorType.Q8_0
    )
    file = open_gguf(random_model)
    tensors = [(name, info.type, info.shape, file.data(name)) for name, info in file.tensors.items()]
    write_gguf(target, {**file.metadata, **vocabulary}, tensors)
    random_model.unlink()


@contextmanager
def served(options: argparse.Namespace) -> Iterator[tuple[psutil.Process, str]]:
    """`nightschool serve` in a process of its own."""
    command = [sys.executable, "-m", "nightschool", "serve", "-m", NAME, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--threads", str(options.threads)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout
    try:
        found = re.search(r"http://[\d.]+:\d+", process.stdout.readline())
        assert found, "the server does not start"
        yield psutil.Process(process.pid), found[0]
    finally:
        process.terminate()
        process.communicate(timeout=30)


async def measure(process: psutil.Process, url: str, options: argparse.Namespace) -> dict[str, Any]:
    ours = Side("served", url, {}, {"model": NAME})
    result: dict[str, Any] = {"base": options.base, "cores": psutil.cpu_count(logical=False)}
    limits = httpx.Limits(keepalive_expiry=2)  # llama.cpp ends idle connections after five
    async with httpx.AsyncClient(timeout=120, trust_env=False, limits=limits) as client:
        await chat(client, ours, tokens=1)
        if "overhead" in options.part:
            with Engine(find_base(NAME).path, slots=4, threads=options.threads) as engine:
                lent = engine.borrow_started()
                bare = Side("bare", lent.address, lent.headers, {"lora": []})
                result["overhead"] = await overhead(client, process, bare, ours, options)
                engine.release(lent)
        if "switching" in options.part:
            result["switching"] = await switching(client, ours)
        if "training" in options.part:
            result["training"] = await training(client, ours, options)
        if "soak" in options.part:
            result["soak"] = await soak(client, process, ours, options)
    return result


# One chat -----------------------------------------------------------------------------------------


@asynccontextmanager
async def answering(
    client: httpx.AsyncClient, side: Side, *, tokens: int, seed: int = 0, **changes: Any
) -> AsyncIterator[httpx.Response]:
    prompt = f"{random.Random(seed).random()} tell me of the house by the sea and who lives in it"
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    async with client.stream(
        "POST", side.url + CHAT, json=body | side.extra | changes, headers=side.headers
    ) as found:
        yield found


async def chat(client: httpx.AsyncClient, side: Side, *, tokens: int, seed: int = 0, **changes: Any) -> Heard:
    """A whole chat; an error in it is kept and not raised."""
    heard, begun = Heard(), time.perf_counter()
    try:
        async with answering(client, side, tokens=tokens, seed=seed, **changes) as response:
            async for line in response.aiter_lines():
                if '"content":"' in line:
                    heard.tokens += 1
                    heard.late += time.perf_counter() - begun > SETTLED_S
                    heard.first_s = heard.first_s or time.perf_counter() - begun
                elif "error" in line:
                    heard.failed = line
    except httpx.HTTPError as error:
        heard.failed = repr(error)
    heard.total_s = time.perf_counter() - begun
    return heard


# Overhead -----------------------------------------------------------------------------------------


async def overhead(
    client: httpx.AsyncClient, process: psutil.Process, bare: Side, ours: Side, options: argparse.Namespace
) -> dict[str, Any]:
    first: dict[str, list[float]] = {"bare": [], "served": []}
    rates: dict[int, list[tuple[float, float]]] = {1: [], 4: []}
    for side in (bare, ours):
        await chat(client, side, tokens=options.tokens)
    for number in range(options.requests):
        for side in (bare, ours) if number % 2 else (ours, bare):
            first[side.name].append((await chat(client, side, tokens=2, seed=number)).first_s)
    for number in range(options.repeats):
        for parallel, found in rates.items():
            order = (bare, ours) if number % 2 else (ours, bare)
            by_name = {side.name: await rate(client, side, parallel, options.tokens) for side in order}
            found.append((by_name["bare"], by_name["served"]))
    begun = cpu_s(process)
    await rate(client, ours, 4, 4 * options.tokens)
    own_s = (cpu_s(process) - begun) / (16 * options.tokens)
    added = [mine - theirs for mine, theirs in zip(first["served"], first["bare"], strict=True)]
    return {
        "first_token_bare_ms": 1e3 * median(first["bare"]),
        "first_token_served_ms": 1e3 * median(first["served"]),
        "first_token_added_ms": 1e3 * median(added),
        "first_token_added_quartiles_ms": quartiles([1e3 * each for each in added]),
        "server_cpu_ms_per_token": 1e3 * own_s,
        "tokens_per_s": {
            str(parallel): {
                "bare": median(bare for bare, _ in found),
                "served": median(served for _, served in found),
                "lost": median(1 - served / bare for bare, served in found),
                "lost_quartiles": quartiles([1 - served / bare for bare, served in found]),
            }
            for parallel, found in rates.items()
        },
    }


def cpu_s(process: psutil.Process) -> float:
    """What the server itself has used of the CPU: its engine is a process of its own."""
    times = process.cpu_times()
    return times.user + times.system


def quartiles(values: list[float]) -> tuple[float, float]:
    """The lower and the upper one: how far rounds lie apart."""
    lower, _, upper = quantiles(values, n=4)
    return lower, upper


async def rate(client: httpx.AsyncClient, side: Side, parallel: int, tokens: int) -> float:
    begun = time.perf_counter()
    heard = await asyncio.gather(*(chat(client, side, tokens=tokens, seed=seed) for seed in range(parallel)))
    assert not any(each.failed for each in heard), heard
    return sum(each.tokens for each in heard) / (time.perf_counter() - begun)


# Switching ----------------------------------------------------------------------------------------


async def switching(client: httpx.AsyncClient, ours: Side) -> dict[str, Any]:
    """Five new adapters, each while a chat streams."""
    base = open_gguf(find_base(NAME).path)
    generator = np.random.default_rng(0)
    seconds: list[float] = []
    failed = 0
    for number in range(5):
        weights = {
            name: (
                generator.normal(size=(16, columns)).astype(np.float32) * 0.01,
                generator.normal(size=(rows, 16)).astype(np.float32) * 0.01,
            )
            for name, (rows, columns) in trainable_shapes(base).items()
        }
        streaming = asyncio.create_task(chat(client, ours, tokens=300, seed=number))
        await asyncio.sleep(0.2)
        save_adapter(f"night{number}", weights, alpha=32, rank=16, base=base, card={})
        heard = await chat(client, ours, tokens=2, model=f"{NAME}+night{number}")
        seconds.append(heard.first_s)
        undisturbed = await streaming
        failed += bool(heard.failed) + bool(undisturbed.failed)
    return {"seconds": [round(each, 3) for each in seconds], "median_s": median(seconds), "failed": failed}


# Training -----------------------------------------------------------------------------------------


async def training(client: httpx.AsyncClient, ours: Side, options: argparse.Namespace) -> dict[str, Any]:
    """Long chats without and with a job beside them."""

    async def settled_rate(number: int) -> float:
        heard = await chat(client, ours, tokens=1000, seed=number)
        assert not heard.failed and heard.total_s > 2 * SETTLED_S, heard
        return heard.late / (heard.total_s - SETTLED_S)

    alone = [await settled_rate(number) for number in range(options.repeats)]
    job = await begin_job(client, ours)
    beside, steps = [], [await trained_steps(client, ours, job, more_than=0)]
    for number in range(options.repeats):
        beside.append(await settled_rate(number))
        steps.append(await trained_steps(client, ours, job, more_than=steps[-1]))
    await client.post(f"{ours.url}/v1/fine_tuning/jobs/{job}/cancel", json={})
    return {
        "tokens_per_s_alone": median(alone),
        "tokens_per_s_beside_a_job": median(beside),
        "kept": median(beside) / median(alone),
        "job_steps_after_each_chat": steps,
    }


async def begin_job(client: httpx.AsyncClient, ours: Side) -> str:
    """A fine-tuning job that takes longer than the measurement; its id."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is kept in drawer {number}?"},
                {"role": "assistant", "content": f"In drawer {number} there are {number * 7} spoons."},
            ]
        }
        for number in range(400)
    ]
    content = "\n".join(map(json.dumps, rows)).encode()
    form = {"file": ("drawers.jsonl", content, "application/jsonl")}
    file = await client.post(ours.url + "/v1/files", files=form, data={"purpose": "fine-tune"})
    order = {"model": NAME, "training_file": file.raise_for_status().json()["id"]}
    order["hyperparameters"] = {"n_epochs": 50}
    job = await client.post(ours.url + "/v1/fine_tuning/jobs", json=order)
    return str(job.raise_for_status().json()["id"])


async def trained_steps(client: httpx.AsyncClient, ours: Side, job: str, *, more_than: int) -> int:
    """The job's last step, once it is a later one."""
    async with asyncio.timeout(180):
        while True:
            path = f"{ours.url}/v1/fine_tuning/jobs/{job}/events"
            events = (await client.get(path, params={"limit": 100})).json()["data"]
            last = max(
                (event["data"]["step"] for event in events if "step" in (event["data"] or {})), default=0
            )
            if last > more_than:
                return int(last)
            await asyncio.sleep(0.2)


# Soak ---------------------------------------------------------------------------------------------


async def soak(
    client: httpx.AsyncClient, process: psutil.Process, ours: Side, options: argparse.Namespace
) -> dict[str, Any]:
    chance = random.Random(0)
    counts = {"whole": 0, "left": 0, "failed": 0, "hung": 0}
    kills = 0
    killing = asyncio.Event()
    early: dict[str, int] = {}

    async def one(number: int) -> None:
        tokens, leaves = chance.randint(1, 120), chance.random() < 0.33
        try:
            async with asyncio.timeout(60):
                if leaves:
                    await leave(client, ours, tokens, chance.uniform(0, 0.3))
                    counts["left"] += 1
                    return
                heard = await chat(client, ours, tokens=tokens, seed=number)
                counts["failed" if heard.failed else "whole"] += 1
        except TimeoutError:
            counts["hung"] += 1

    async def killer() -> None:
        nonlocal kills
        while kills < options.kills and not killing.is_set():
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            for engine in engines(process)[:1]:
                engine.kill()
                kills += 1

    waiting = iter(range(options.chats))
    tenth = options.chats // 10

    async def worker() -> None:
        for number in waiting:
            await one(number)
            if number == tenth:
                early.update(footprint(process))

    begun = time.perf_counter()
    killed = asyncio.create_task(killer())
    await asyncio.gather(*(worker() for _ in range(8)))
    killing.set()
    await killed
    after = await chat(client, ours, tokens=5)
    await asyncio.sleep(3)
    return {
        **counts,
        "kills": kills,
        "seconds": round(time.perf_counter() - begun, 1),
        "answers_after": not after.failed,
        "engines_left": len(engines(process)),
        "children_left": len(process.children(recursive=True)),
        "chatting_after": await chatting(client, ours),
        "after_a_tenth": early,
        "at_the_end": footprint(process),
    }


async def leave(client: httpx.AsyncClient, side: Side, tokens: int, after_s: float) -> None:
    """Begin a chat and go away."""
    try:
        async with asyncio.timeout(after_s):
            async with answering(client, side, tokens=tokens) as response:
                async for _ in response.aiter_bytes():
                    pass
    except (TimeoutError, httpx.HTTPError):
        pass


def engines(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children():
        try:
            if child.status() != psutil.STATUS_ZOMBIE and "_engine_child" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it ends just now
            continue
    return found


def footprint(process: psutil.Process) -> dict[str, int]:
    return {
        "open_files": process.num_fds(),
        "threads": process.num_threads(),
        "memory_mb": process.memory_info().rss >> 20,
    }


async def chatting(client: httpx.AsyncClient, side: Side) -> float:
    """Answers under way, as the server counts them."""
    text = (await client.get(side.url + "/metrics")).text
    found = re.search(r"^nightschool_chatting (\S+)", text, re.MULTILINE)
    assert found
    return float(found[1])


def print_table(result: dict[str, Any]) -> None:
    if found := result.get("overhead"):
        bare, mine, added = (found[f"first_token_{name}_ms"] for name in ("bare", "served", "added"))
        lower, upper = found["first_token_added_quartiles_ms"]
        print(
            f"first token    bare {bare:8.1f} ms   served {mine:8.1f} ms   added {added:6.2f} ms "
            f"({lower:.2f} to {upper:.2f})"
        )
        print(f"the server's own CPU time: {found['server_cpu_ms_per_token']:.3f} ms a token")
        for parallel, rates in found["tokens_per_s"].items():
            bare, mine, lost = (rates[name] for name in ("bare", "served", "lost"))
            lower, upper = rates["lost_quartiles"]
            print(
                f"{parallel} in parallel  bare {bare:8.1f} /s   served {mine:8.1f} /s   lost  {lost:6.1%} "
                f"({lower:.1%} to {upper:.1%})"
            )
    if found := result.get("switching"):
        print(f"a new adapter answers after {found['median_s']:.2f} s; {found['failed']} requests failed")
    if found := result.get("training"):
        alone, beside = found["tokens_per_s_alone"], found["tokens_per_s_beside_a_job"]
        print(f"beside a job   alone {alone:7.1f} /s   beside {beside:7.1f} /s   kept  {found['kept']:6.1%}")
        print(f"the job's step after each chat: {found['job_steps_after_each_chat']}")
    if found := result.get("soak"):
        for key, value in found.items():
            print(f"{key:16} {value}")


if __name__ == "__main__":
    main()
