"""The program that says how probable given tokens are: `python -m nightschool.scoring`, the server's child.

Exactly, that is by the forward pass that training uses (model), in float32 on the unpacked weights. Requests
and answers are lines of JSON on stdin and stdout; the model of the last request stays loaded. It ends with
its stdin.

    {"base": path, "adapters": [[path, scale], …], "prompts": [[token, …], …], "top": 5, "threads": 0}
    {"scores": [{"logprobs": [null, …], "top": [null, [[token, logprob], …], …]}, …]}   or {"error": "…"}

Both lists have one entry more than the prompt: the last is for the token that would follow, the likeliest.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from nightschool.adapters import load_weights
from nightschool.errors import NightschoolError
from nightschool.gguf import open_gguf
from nightschool.lessons import Batch
from nightschool.lora import stacked
from nightschool.memory import free_bytes
from nightschool.model import Model, Pairs

STREAM_TOKENS = 2048  # read at once
LOGITS = 1 << 23  # held at once: 32 MB

Score = dict[str, Any]


class Scorer:
    """One base with adapters, loaded."""

    def __init__(self, base: Path, adapters: Sequence[tuple[Path, float]]) -> None:
        file = open_gguf(base)
        weights = sum(int(np.prod(tensor.shape)) for tensor in file.tensors.values())
        # Packed weights are unpacked at every use: the same numbers, slower.
        self.model = Model(file, "fp32" if 4 * weights < free_bytes() / 2 else "packed")
        loaded = [(load_weights(path), scale) for path, scale in adapters]
        self.pairs: Pairs = stacked([(each.weights, each.alpha, scale) for each, scale in loaded])

    def score(self, prompts: Sequence[Sequence[int]], top: int) -> list[Score]:
        """The log-probability of each token after those before it, and the `top` likeliest in its place."""
        found: list[Score] = []
        with torch.inference_mode():
            for some in packed(prompts):
                hidden = self.model.read(batch_of(some), self.pairs)  # (T, width)
                start = 0
                for prompt in some:
                    found.append(self._score_one(prompt, hidden[start : start + len(prompt)], top))
                    start += len(prompt)
        return found

    def _score_one(self, prompt: Sequence[int], hidden: Tensor, top: int) -> Score:
        logprobs: list[float | None] = [None]
        candidates: list[list[tuple[int, float]] | None] = [None]
        rows = max(1, LOGITS // self.model.config.vocabulary)
        followers = torch.tensor([*prompt[1:], -1])
        for start in range(0, len(prompt), rows):
            predicted = torch.log_softmax(
                self.model.logits(hidden[start : start + rows]).float(), dim=-1
            )  # (R, V)
            best = predicted.topk(max(1, min(top, predicted.shape[1])))
            after = followers[start : start + rows]  # (R,)
            after = torch.where(after < 0, best.indices[:, 0], after)
            logprobs += predicted.gather(1, after[:, None])[:, 0].tolist()
            candidates += [
                list(zip(tokens, values, strict=True))
                for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        return {"logprobs": logprobs, "top": candidates}


def packed(prompts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Prompts in order, as many at once as STREAM_TOKENS allows, at least one."""
    some: list[Sequence[int]] = []
    for prompt in prompts:
        if some and sum(map(len, some)) + len(prompt) > STREAM_TOKENS:
            yield some
            some = []
        some.append(prompt)
    if some:
        yield some


def batch_of(prompts: Sequence[Sequence[int]]) -> Batch:
    """Prompts end to end, each a document of its own."""
    lengths = [len(prompt) for prompt in prompts]
    return Batch(
        tokens=np.concatenate([np.array(prompt, np.int32) for prompt in prompts]),
        positions=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        document=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        targets=np.zeros(sum(lengths), np.bool_),
    )


def answer(requests: IO[str], answers: IO[str]) -> None:
    """Answer every line until there are no more."""
    loaded: tuple[Any, Scorer] | None = None
    for line in requests:
        request = json.loads(line)
        if request["threads"]:
            torch.set_num_threads(request["threads"])
        identity = request["base"], request["adapters"], request["version"]
        try:
            if loaded is None or loaded[0] != identity:
                loaded = None  # its memory first
                adapters = [(Path(path), scale) for path, scale in request["adapters"]]
                loaded = identity, Scorer(Path(request["base"]), adapters)
            said: Score = {"scores": loaded[1].score(request["prompts"], request["top"])}
        except NightschoolError as error:
            said = {"error": str(error)}
        except (MemoryError, RuntimeError):  # torch's way to say that there is no memory
            said = {"error": "The model does not fit into the memory that is free."}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    answer(sys.stdin, sys.stdout)
