"""LoRA adapters (arXiv:2106.09685) as tensors: made, laid out for the optimiser, stacked.

Beside each chosen frozen matrix W (out, in) stand A (rank, in) and B (out, rank), float32; the layer computes
x Wᵀ + alpha/rank · (x Aᵀ) Bᵀ. All As and Bs are views into one flat vector, so that a step of the optimiser,
a clip or a checkpoint is a few operations on one tensor. Names and row order are the GGUF file's own.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nightschool.model import Pairs

Weights = Mapping[
    str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
]  # name → A (rank, in), B (out, rank)

TARGETS = {  # the names people use for the linear layers of a block → the file's names for them
    "q": ("attn_q", "attn_qkv"),
    "k": ("attn_k", "attn_qkv"),
    "v": ("attn_v", "attn_qkv"),
    "o": ("attn_output",),
    "gate": ("ffn_gate", "ffn_up"),
    "up": ("ffn_up",),
    "down": ("ffn_down",),
}


def choose(shapes: Mapping[str, tuple[int, int]], targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The tensors of a model (name → (out, in)) that the chosen targets mean.

    A file that fuses q, k and v, or gate and up, has one tensor for them: naming any of them means that one.
    """
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown or not targets:
        raise ValueError(f"targets are some of {', '.join(TARGETS)}, not {', '.join(unknown) or 'none'}")
    separate_gate = any(".ffn_gate." in name for name in shapes)
    kinds = {kind for target in targets for kind in TARGETS[target]}
    if separate_gate and "up" not in targets:
        kinds.discard("ffn_up")
    return {name: shape for name, shape in shapes.items() if name.split(".")[2] in kinds}


class Lora:
    """A trainable adapter for some of a model's tensors.

    Args:
        shapes: name → (out, in) of each matrix that gets a pair.
        rank: inner size of every pair.
        alpha: the pair's product is scaled by alpha / rank.
        seed: A starts random (Kaiming uniform, as PEFT's), B at zero: training starts at the base.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        *,
        rank: int,
        alpha: float,
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shapes, self.rank, self.alpha = dict(shapes), rank, alpha
        size = sum(rank * (out + width) for out, width in shapes.values())
        self.flat = torch.zeros(size, dtype=dtype, device=device)
        self.grad = torch.zeros_like(self.flat)
        self.pairs: Pairs = {name: [(a, b, alpha / rank)] for name, a, b in self._lay_out()}
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name in self.shapes:
                a = self.pairs[name][0][0]
                bound = math.sqrt(1 / a.shape[1])  # kaiming_uniform_ with a = sqrt(5)
                a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))

    def _lay_out(self) -> list[tuple[str, Tensor, Tensor]]:
        """Views into the flat vectors, as leaves whose gradients land in the flat gradient."""
        laid, start = [], 0
        for name, (out, width) in self.shapes.items():
            views = []
            for shape in ((self.rank, width), (out, self.rank)):
                stop = start + shape[0] * shape[1]
                leaf = self.flat[start:stop].view(shape).requires_grad_()
                leaf.grad = self.grad[start:stop].view(shape)
                views.append(leaf)
                start = stop
            laid.append((name, views[0], views[1]))
        return laid

    def weights(self) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """The adapter as numpy arrays: name → A (rank, in), B (out, rank), float32, copies."""
        return {name: (_array(pairs[0][0]), _array(pairs[0][1])) for name, pairs in self.pairs.items()}

    def load(self, weights: Weights) -> None:
        """Take over the values of a saved adapter of the same shape."""
        with torch.no_grad():
            for name, (a, b) in weights.items():
                self.pairs[name][0][0].copy_(torch.from_numpy(a))
                self.pairs[name][0][1].copy_(torch.from_numpy(b))


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.detach().float().cpu().numpy().copy()
    return array


def stacked(
    adapters: Sequence[tuple[Weights, float, float]],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Pairs:
    """Pairs of several saved adapters on top of each other: (weights, alpha, scale) each."""
    pairs: dict[str, list[tuple[Tensor, Tensor, float]]] = {}
    for weights, alpha, scale in adapters:
        for name, (a, b) in weights.items():
            ta, tb = (torch.from_numpy(x).to(device, dtype) for x in (a, b))
            pairs.setdefault(name, []).append((ta, tb, scale * alpha / a.shape[0]))
    return pairs
