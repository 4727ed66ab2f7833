"""nanochat's optimizer in PyTorch, written from its specification: AdamW and Muon.

In: gradients. Out: parameters changed in place. Tables, head and scalars take AdamW; the matrices
inside layers take Muon, stacked by shape: Nesterov momentum, rows of equal norm, five Polar Express
iterations, norm sqrt(min(m, n)), NorMuon's variance reduction, cautious decay. torch_check.py holds
six steps of both against fixtures/recipe. Sources: arXiv 2505.16932, 2510.05491, 2603.28254,
2602.21545.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from torch_model import Gpt

EPS = 1e-10
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def adamw(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: Tensor, lr: Tensor, betas: Tensor, wd: Tensor
) -> None:
    """One AdamW step, in f32 whatever the dtype of `p`, `m`, `v`. Scalars are tensors of one."""
    grad = g.float()
    first = torch.lerp(grad, m.float(), betas[0])
    second = torch.lerp(grad.square(), v.float(), betas[1])
    scale = (second / (1 - betas[1] ** t)).sqrt() + EPS
    p.copy_(p.float() * (1 - lr * wd) - lr / (1 - betas[0] ** t) * first / scale)
    m.copy_(first)
    v.copy_(second)


def muon(
    p: Tensor, g: Tensor, buf: Tensor, second: Tensor, lr: Tensor, mu: Tensor, wd: Tensor,
    dtype: torch.dtype = torch.float32, beta2: float = 0.9,
) -> None:  # fmt: skip
    """One Muon step of a stack (K, m, n); `second` is (K, m, 1) if m >= n, else (K, 1, n)."""
    m, n = p.shape[-2:]
    buf.lerp_(g, 1 - mu)
    x = orthogonal(torch.lerp(g, buf, mu).to(dtype)).to(p.dtype)
    x = x * (min(m, n) ** 0.5 / frobenius(x).clamp(min=1e-6))
    x = reduce_variance(x, second, beta2)
    rate = lr * max(1.0, m / n) ** 0.5
    p.sub_(rate * x + rate * wd * p * (x * p >= 0))


def frobenius(x: Tensor) -> Tensor:
    """Norm of each matrix, (K, 1, 1), in f32."""
    return x.float().square().sum((-2, -1), keepdim=True).sqrt()


def orthogonal(x: Tensor) -> Tensor:
    """The nearest orthogonal matrix, nearly: rows made equal, then five iterations."""
    rows = x.float().square().sum(-1, keepdim=True).sqrt().clamp(min=1e-6)
    x = x * (frobenius(x) / x.size(-2) ** 0.5 / rows).to(x.dtype)
    x = x / (frobenius(x) * 1.01 + 1e-6).to(x.dtype)
    tall = x.size(-2) > x.size(-1)
    for a, b, c in POLAR_EXPRESS:
        gram = x.mT @ x if tall else x @ x.mT
        poly = b * gram + c * (gram @ gram)
        x = a * x + (x @ poly if tall else poly @ x)
    return x


def reduce_variance(g: Tensor, second: Tensor, beta2: float) -> Tensor:
    """NorMuon: each row (or column) is divided by its running RMS; the whole norm stays."""
    axis = -1 if g.size(-2) >= g.size(-1) else -2
    v = g.float().square().mean(axis, keepdim=True)
    second.lerp_(v, 1 - beta2)
    s = second.clamp(min=1e-10).rsqrt()
    size = g.size(axis)
    old = (v * size).sum((-2, -1), keepdim=True).sqrt()
    new = (v * size * s.square()).sum((-2, -1), keepdim=True).sqrt()
    return g * (s * old / new.clamp(min=1e-10))


class Optimizer:
    """All groups of a model. `compiled` compiles the two steps, as upstream does."""

    def __init__(self, model: Gpt, compiled: bool) -> None:
        matrices = defaultdict(list)
        for p in model.transformer["h"].parameters():
            matrices[tuple(p.shape)].append(p)
        inside = {id(p) for group in matrices.values() for p in group}
        self.dtype = model.dtype
        self.singles = [p for p in model.parameters() if id(p) not in inside]
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.singles]
        self.stacks = [matrices[shape] for shape in sorted(matrices)]
        self.buffers = [muon_state(group) for group in self.stacks]
        wrap: Callable = torch.compile(dynamic=False) if compiled else lambda f: f
        self.adamw, self.muon = wrap(adamw), wrap(muon)
        # On the device, so that no step waits for a copy.
        scalar = partial(torch.tensor, dtype=torch.float32, device=self.singles[0].device)
        self.t, self.lr, self.wd = scalar(0.0), scalar(1e-3), scalar(0.01)
        self.betas, self.mu = scalar([0.8, 0.95]), scalar(0.9)

    @torch.no_grad()
    def step(self) -> None:
        """One step at small fixed rates; gradients are dropped afterwards."""
        self.t += 1
        lr, wd = self.lr, self.wd
        for p, (m, v) in zip(self.singles, self.moments):
            self.adamw(p, p.grad, m, v, self.t, lr, self.betas, wd)
        for group, (buf, second) in zip(self.stacks, self.buffers):
            p, g = torch.stack(group), torch.stack([p.grad for p in group])
            self.muon(p, g, buf, second, lr, self.mu, wd, self.dtype)
            torch._foreach_copy_(group, list(p.unbind()))
        for p in (*self.singles, *(p for group in self.stacks for p in group)):
            p.grad = None


def muon_state(group: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Momentum (K, m, n) and second moment of a stack of K matrices, zero."""
    m, n = group[0].shape
    second = (len(group), m, 1) if m >= n else (len(group), 1, n)
    zeros = partial(torch.zeros, device=group[0].device)
    return zeros(len(group), m, n), zeros(second)
