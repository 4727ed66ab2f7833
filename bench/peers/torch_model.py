"""The model of nanochat (generation 5, July 2026) in PyTorch, written from its specification.

In: token ids (B, T). Out: logits (B, T, V) after the softcap, or the mean loss. Parameters have the
names of upstream's state dict. torch_check.py holds logits, loss and every gradient against
fixtures/gen5. Rotary tables and activations are in `dtype`; matrices are f32 and cast in each
product, as upstream does, until `cast_once`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROPE_BASE, QK_SCALE, SOFTCAP = 100_000.0, 1.2, 15.0
VE_GATE_CHANNELS, SMEAR_CHANNELS = 12, 24


@dataclass(frozen=True)
class Config:
    """Sizes. Windows are the letters L (all of T) and S (a quarter, in steps of 128)."""

    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int
    vocab_size: int
    sequence_len: int
    window_pattern: str = "L"

    @staticmethod
    def of_depth(depth: int, head_dim: int, vocab_size: int, sequence_len: int) -> "Config":
        """Upstream's rule: 64 channels a layer, rounded up to whole heads."""
        heads = -(-64 * depth // head_dim)
        return Config(depth, heads * head_dim, heads, heads, vocab_size, sequence_len)

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def padded_vocab(self) -> int:
        return -(-self.vocab_size // 64) * 64

    def has_value_embedding(self, layer: int) -> bool:
        return layer % 2 == (self.n_layer - 1) % 2

    def train_flops_per_token(self) -> int:
        """Upstream's account: 6 a weight of a product, and attention over whole windows."""
        c, kv_dim, h = self.n_embd, self.n_kv_head * self.head_dim, self.n_kv_head
        gates = sum(VE_GATE_CHANNELS * h for i in range(self.n_layer) if self.has_value_embedding(i))
        layer = 2 * c * c + 2 * c * kv_dim + 8 * c * c
        weights = self.n_layer * layer + gates + SMEAR_CHANNELS + self.padded_vocab * c
        seen = sum(min(self.window(i), self.sequence_len) for i in range(self.n_layer))
        return 6 * weights + 12 * c * seen

    def window(self, layer: int) -> int:
        """Earlier keys that a query of this layer sees, beside its own."""
        letter = self.window_pattern[layer % len(self.window_pattern)]
        short = letter == "S" and layer != self.n_layer - 1
        return -(-self.sequence_len // 4 // 128) * 128 if short else self.sequence_len


class Cache:
    """Keys and values of all layers, (B, H, T, D) each, and the last embedding before the smear."""

    def __init__(
        self, config: Config, rows: int, length: int, dtype: torch.dtype, device: str = "cpu"
    ) -> None:
        shape = (rows, config.n_kv_head, length, config.head_dim)
        empty = partial(torch.empty, shape, dtype=dtype, device=device)
        self.keys = [empty() for _ in range(config.n_layer)]
        self.values = [empty() for _ in range(config.n_layer)]
        self.position = 0
        self.previous: Tensor | None = None

    def rope(self, cos: Tensor, sin: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """The rotary tables of the next `t` positions."""
        start = self.position
        return cos[:, start : start + t], sin[:, start : start + t]

    def mask(self, layer: int) -> Tensor | None:
        """Which of the keys that `put` gives back are seen; none: all up to the query's own."""
        return None

    def remember(self, last: Tensor) -> None:
        """Keeps the last embedding (B, 1, C) before the smear."""
        self.previous = last

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values at the position; all up to there come back."""
        end = self.position + k.size(2)
        self.keys[layer][:, :, self.position : end] = k
        self.values[layer][:, :, self.position : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def fork(self, config: Config, rows: int, length: int) -> "Cache":
        """One row's cache becomes `rows` rows of `length` positions."""
        first = self.keys[0]
        wide = Cache(config, rows, length, first.dtype, first.device)
        for layer in range(config.n_layer):
            wide.put(layer, self.keys[layer], self.values[layer])
        wide.position = self.position
        if self.previous is not None:
            wide.previous = self.previous.expand(rows, -1, -1)
        return wide


class Linear(nn.Linear):
    """A product without bias whose weight takes the dtype of its input."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def norm(x: Tensor) -> Tensor:
    """RMSNorm over the last axis, without a gain."""
    return F.rms_norm(x, (x.size(-1),))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (B, T, H, D): channel j is paired with j + D/2, by the angle -theta."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        # What attends in a layer with a short window, in place of a mask: (q, k, v) to the result.
        self.windowed: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        kv_dim = config.n_kv_head * config.head_dim
        self.c_q = Linear(config.n_embd, config.n_embd)
        self.c_k = Linear(config.n_embd, kv_dim)
        self.c_v = Linear(config.n_embd, kv_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        if config.has_value_embedding(layer):
            self.ve_gate = Linear(VE_GATE_CHANNELS, config.n_kv_head)

    def forward(
        self, y: Tensor, ve: Tensor | None, rope: tuple[Tensor, Tensor], cache: Cache | None
    ) -> Tensor:
        b, t, _ = y.shape
        d = self.config.head_dim
        q, k, v = (f(y).view(b, t, -1, d) for f in (self.c_q, self.c_k, self.c_v))
        if ve is not None:
            gate = 3 * torch.sigmoid(self.ve_gate(y[..., :VE_GATE_CHANNELS]))
            v = v + gate.unsqueeze(-1) * ve.view_as(v)
        q, k = (norm(rotate(x, *rope)) * QK_SCALE for x in (q, k))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if cache is not None:
            k, v = cache.put(self.layer, k, v)
        if cache is None and self.windowed is not None:
            out = self.windowed(q, k, v)
        else:
            mask = self.window_mask(t, q.device) if cache is None else cache.mask(self.layer)
            out = F.scaled_dot_product_attention(
                q, k, v, mask, is_causal=mask is None and t > 1, enable_gqa=q.size(1) != k.size(1)
            )
        return self.c_proj(out.transpose(1, 2).reshape(b, t, -1))

    def window_mask(self, t: int, device: torch.device) -> Tensor | None:
        """(T, T), true where a query sees a key; none where that is just causal."""
        window = self.config.window(self.layer)
        if window >= t - 1:
            return None
        at = torch.arange(t, device=device)
        back = at.unsqueeze(1) - at
        return (back >= 0) & (back <= window)


class Mlp(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, y: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(y)).square())


class Block(nn.Module):
    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(config, layer), Mlp(config)


class Gpt(nn.Module):
    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        kv_dim = config.n_kv_head * config.head_dim
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.padded_vocab, config.n_embd),
                "h": nn.ModuleList(Block(config, i) for i in range(config.n_layer)),
            }
        )
        self.value_embeds = nn.ModuleDict(
            {
                str(i): nn.Embedding(config.padded_vocab, kv_dim)
                for i in range(config.n_layer)
                if config.has_value_embedding(i)
            }
        )
        self.lm_head = Linear(config.n_embd, config.padded_vocab)
        self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))
        self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer))
        self.smear_gate = Linear(SMEAR_CHANNELS, 1)
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.backout_lambda = nn.Parameter(torch.full((1,), 0.2))
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos.to(dtype), persistent=False)
        self.register_buffer("sin", sin.to(dtype), persistent=False)

    def draw(self) -> "Gpt":
        """Small random values everywhere: speed does not depend on them. Tables take `dtype`."""
        torch.manual_seed(42)
        for p in self.parameters():
            nn.init.normal_(p, std=0.02 if p.dim() == 2 else 0.5)
        self.transformer["wte"].to(self.dtype)
        self.value_embeds.to(self.dtype)
        return self

    def cast_once(self) -> "Gpt":
        """All weights in `dtype`, so that no product casts: for generation."""
        return self.to(self.dtype)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in nats over the targets that are not -1."""
        logits = self.logits(self.hidden(ids, None)).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=-1)

    def logits(self, x: Tensor) -> Tensor:
        """(..., C) to (..., V): the head, then in f32 the softcap 15 tanh(z / 15)."""
        z = self.lm_head(x)[..., : self.config.vocab_size].float()
        return SOFTCAP * torch.tanh(z / SOFTCAP)

    def step(self, ids: Tensor, cache: Cache) -> Tensor:
        """Feeds (B, T) ids at the cache's position; logits (B, V) of the last of them."""
        logits = self.logits(self.hidden(ids, cache)[:, -1])
        cache.position += ids.size(1)
        return logits

    def hidden(self, ids: Tensor, cache: Cache | None) -> Tensor:
        """(B, T) to (B, T, C): everything before the head."""
        t = ids.size(1)
        rope = cache.rope(self.cos, self.sin, t) if cache else (self.cos[:, :t], self.sin[:, :t])
        x = self.smear(norm(self.transformer["wte"](ids).to(self.dtype)), cache)
        x0, kept = x, x
        for i, block in enumerate(self.transformer["h"]):
            x = self.resid_lambdas[i].to(x.dtype) * x + self.x0_lambdas[i].to(x.dtype) * x0
            has_ve = self.config.has_value_embedding(i)
            ve = self.value_embeds[str(i)](ids).to(x.dtype) if has_ve else None
            x = x + block.attn(norm(x), ve, rope, cache)
            x = x + block.mlp(norm(x))
            if i == self.config.n_layer // 2:
                kept = x
        return norm(x - self.backout_lambda.to(x.dtype) * kept)

    def smear(self, x: Tensor, cache: Cache | None) -> Tensor:
        """Adds to each embedding a gated share of the one before it; position 0 has none."""
        before, first = x[:, :-1], x[:, :1]
        if cache is not None:
            if cache.previous is not None and x.size(1) == 1:
                before, first = cache.previous, x[:, :0]
        rest = x[:, first.size(1) :]
        gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(
            self.smear_gate(rest[..., :SMEAR_CHANNELS])
        )
        smeared = torch.cat((first, rest + gate * before), dim=1)
        if cache is not None:
            cache.remember(x[:, -1:])
        return smeared


def rotary_tables(config: Config) -> tuple[Tensor, Tensor]:
    """cos and sin, (1, 10 T, 1, D/2), of position times base^(-2j/D)."""
    j = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    inverse = 1.0 / ROPE_BASE ** (j / config.head_dim)
    angle = torch.outer(torch.arange(10 * config.sequence_len, dtype=torch.float32), inverse)
    return angle.cos()[None, :, None], angle.sin()[None, :, None]
