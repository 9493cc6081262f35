"""Muon: momentum whose matrices are orthogonalized (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

import math
from typing import Any

import torch


class Muon(torch.optim.Optimizer):
    """For matrices. A quintic Newton-Schulz iteration in `dtype`; the update is scaled to AdamW's
    usual size."""

    def __init__(
        self,
        params: Any,
        lr: float,
        weight_decay: float,
        dtype: torch.dtype,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "dtype": dtype, "momentum": momentum}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(momentum, group["momentum"]).to(group["dtype"])
                tall = x.shape[0] > x.shape[1]
                x = x.t().contiguous() if tall else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    a = x @ x.t()
                    x = torch.addmm(
                        x, torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445
                    )
                x = x.t() if tall else x
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(x.float(), alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))
