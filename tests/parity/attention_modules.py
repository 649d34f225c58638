"""Small attention modules of torch with what newer models have; each is correct, or makes the mistake that is named."""

from __future__ import annotations

import math

import torch

HEADS, KEY_HEADS, WIDTH, SIZE = 8, 2, 8, 64
LAYER = 2


def causal_weights(q: torch.Tensor, k: torch.Tensor, *sinks: torch.Tensor) -> torch.Tensor:
    """Softmax of the causal scores of grouped queries; with sinks (H,), each is one more score, then dropped."""
    z = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(2, 3) * q.shape[3] ** -0.5
    z = z.masked_fill(torch.ones(z.shape[2:], dtype=torch.bool).triu(1), -math.inf)
    more = [sink.view(1, -1, 1, 1).expand(*z.shape[:3], 1) for sink in sinks]
    return torch.cat([z, *more], dim=3).softmax(dim=3)[..., : z.shape[3]]


def weighted(weights: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return weights @ v.repeat_interleave(weights.shape[1] // v.shape[1], dim=1)


class Grouped(torch.nn.Module):
    """Plain causal attention with grouped queries."""

    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.mistake = mistake
        self.q_proj = torch.nn.Linear(SIZE, HEADS * WIDTH, bias=False)
        self.k_proj = torch.nn.Linear(SIZE, KEY_HEADS * WIDTH, bias=False)
        self.v_proj = torch.nn.Linear(SIZE, KEY_HEADS * WIDTH, bias=False)
        self.o_proj = torch.nn.Linear(HEADS * WIDTH, SIZE, bias=False)

    def by_head(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        return tuple(project(x).unflatten(-1, (-1, WIDTH)).transpose(1, 2) for project in projections)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.by_head(x)
        return weighted(causal_weights(q, k), v).transpose(1, 2).flatten(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o_proj(self.attend(x))


class WithOut(Grouped):
    """Its output projection has a name that the oracle does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.out = self.o_proj
        del self.o_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.attend(x))


class WithSinks(Grouped):
    """A learned score of no key for each query head, as in gpt-oss."""

    def __init__(self, mistake: str = "") -> None:
        super().__init__(mistake)
        self.sinks = torch.nn.Parameter(torch.zeros(HEADS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.by_head(x)
        sinks = self.sinks.detach() if self.mistake == "detached" else self.sinks
        if self.mistake == "sinks_by_key_head":
            sinks = sinks[:KEY_HEADS].repeat_interleave(HEADS // KEY_HEADS)
        return self.o_proj(weighted(causal_weights(q, k, sinks), v).transpose(1, 2).flatten(2))


class WithGate(Grouped):
    """Each number that goes into o_proj is multiplied by the sigmoid of a projection of x."""

    def __init__(self, mistake: str = "") -> None:
        super().__init__(mistake)
        self.g_proj = torch.nn.Linear(SIZE, HEADS * WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.by_head(x)
        gate = torch.nn.functional.silu if self.mistake == "silu_gate" else torch.sigmoid
        return self.o_proj(weighted(causal_weights(q, k), v).transpose(1, 2).flatten(2) * gate(self.g_proj(x)))


class WithLambdaPerHead(torch.nn.Module):
    """Differential attention whose heads have λ vectors of their own, and torch's GroupNorm of each token's heads."""

    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.mistake = mistake
        self.q_proj = torch.nn.Linear(SIZE, HEADS * WIDTH, bias=False)
        self.k_proj = torch.nn.Linear(SIZE, 2 * KEY_HEADS * WIDTH, bias=False)
        self.v_proj = torch.nn.Linear(SIZE, 2 * KEY_HEADS * WIDTH, bias=False)
        self.out_proj = torch.nn.Linear(HEADS * WIDTH, SIZE, bias=False)
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            setattr(self, name, torch.nn.Parameter(torch.zeros(HEADS // 2, WIDTH)))
        self.groupnorm = torch.nn.GroupNorm(HEADS // 2, HEADS * WIDTH, eps=1e-5)
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * LAYER)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = (project(x).unflatten(-1, (-1, 2, WIDTH)).transpose(1, 2) for project in (self.q_proj, self.k_proj))
        v = self.v_proj(x).unflatten(-1, (-1, 2 * WIDTH)).transpose(1, 2)
        one, two = (weighted(causal_weights(q[:, :, :, i], k[:, :, :, i]), v) for i in (0, 1))
        first, second = (
            torch.exp((getattr(self, f"lambda_q{i}") * getattr(self, f"lambda_k{i}")).sum(dim=-1)) for i in "12"
        )
        by_head = (first - second + self.lambda_init).view(-1, 1, 1)
        if self.mistake == "lambda_of_head_0":
            by_head = by_head[:1]
        heads = (one - by_head * two).transpose(1, 2)
        normed = self.groupnorm(heads.flatten(0, 1).flatten(1)).view(*x.shape[:2], -1)
        return self.out_proj((1 - self.lambda_init) * normed)
