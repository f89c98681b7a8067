"""Muon: momentum whose matrices are made nearly orthogonal before they are applied (Jordan et al., 2024)."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

# The quintic of the paper's reference code: pulls singular values into about 0.7 … 1.2 in five rounds.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5


class Muon(Optimizer):
    """For weight matrices only; matrices of one shape are orthogonalised together."""

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                by_shape.setdefault(weight.shape, []).append(weight)
            for weights in by_shape.values():
                for weight in weights:
                    weight.mul_(1 - group["lr"] * group["decay"])
                update(weights, self.state, group["lr"], momentum=group["momentum"])


def update(
    weights: list[Tensor], state: dict[Tensor, dict[str, Tensor]], lr: float, *, momentum: float
) -> None:
    """Apply one step to weights of one shape (M, N)."""
    directions = []
    for weight in weights:
        if "momentum" not in state[weight]:
            state[weight]["momentum"] = torch.zeros_like(weight)
        average = state[weight]["momentum"]
        average.lerp_(weight.grad, 1 - momentum)
        directions.append(torch.lerp(weight.grad, average, momentum))
    rows, columns = weights[0].shape
    stacked = orthogonal(torch.stack(directions)) * max(1.0, rows / columns) ** 0.5
    for weight, direction in zip(weights, stacked, strict=True):
        weight.add_(direction, alpha=-lr)


def orthogonal(x: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices to x (K, M, N), roughly.

    The rounds are done on the small Gram matrices: y ← p(y yᵀ) y five times is one product of polynomials of
    the first y yᵀ, times y. That is a third of the work for matrices that are wide or tall.
    """
    tall = x.shape[-2] > x.shape[-1]
    y = (x.mT if tall else x).float()
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram = y @ y.mT
    one = torch.eye(gram.shape[-1], device=x.device)
    whole = one
    for _ in range(ROUNDS):
        factor = A * one + B * gram + C * gram @ gram  # symmetric, and commutes with gram
        whole = factor @ whole
        gram = factor @ gram @ factor
    y = whole @ y
    return (y.mT if tall else y).to(x.dtype)
