"""Checks that the PyTorch peer computes what nanochat computes: the fixtures decide.

In: fixtures/gen5 (logits, loss, all gradients of a small model) and fixtures/recipe (six optimizer
steps). Out: the largest differences relative to the largest value of a tensor, and an error above
1e-5 (1e-4 for the optimizer): f32 strays by 1e-6 from the f64 that made the fixtures. Generation
with a cache is held against the whole forward pass.
"""

import json
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torch_model import Cache, Config, Gpt
from torch_optim import adamw, muon, muon_state

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
DTYPES = {"F32": np.float32, "I32": np.int32, "I64": np.int64}


def safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file: a length, a JSON header, then the bytes."""
    data = path.read_bytes()
    (n,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + n])
    header.pop("__metadata__", None)
    tensors = {}
    for name, about in header.items():
        start, end = (8 + n + at for at in about["data_offsets"])
        values = np.frombuffer(data[start:end], DTYPES[about["dtype"]]).copy()
        tensors[name] = torch.from_numpy(values).view(about["shape"])
    return tensors


def far(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the largest value of `b`."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item()


def check(what: str, off: float, most: float) -> None:
    print(f"{what}: {off:.1e}")
    if off > most:
        raise SystemExit(f"{what}: off by {off:.1e}, more than {most:.0e}")


def check_model() -> Gpt:
    fields = json.loads((FIXTURES / "gen5/config.json").read_text())
    fields.pop("generation")
    case = safetensors(FIXTURES / "gen5/case.safetensors")
    model = Gpt(Config(**fields), torch.float32)
    model.load_state_dict(safetensors(FIXTURES / "gen5/weights.safetensors"))
    ids, targets = case["ids"].long(), case["targets"].long()
    logits = model.logits(model.hidden(ids, None))[:, case["positions"].long()]
    check("logits", far(logits.detach(), case["logits_sample"]), 1e-5)
    loss = model(ids, targets)
    loss.backward()
    check("loss", far(loss.detach(), case["loss"][0]), 1e-5)
    off = max(far(p.grad, case[f"grads/{name}"]) for name, p in model.named_parameters())
    check("gradients", off, 1e-5)
    return model


def check_cache() -> None:
    config = Config.of_depth(4, 32, 90, 64)
    model = Gpt(config, torch.float32).draw()
    ids = torch.randint(90, (1, 24))
    with torch.no_grad():
        whole = model.logits(model.hidden(ids, None))
        cache = Cache(config, 1, 16, torch.float32)
        steps = [model.step(ids[:, :16], cache)]
        cache = cache.fork(config, 2, 24)
        for i in range(16, 24):
            steps.append(model.step(ids[:, i : i + 1].expand(2, 1), cache)[1:])
    check("generation with a cache", far(torch.stack(steps, 1), whole[:, 15:]), 1e-5)


def check_optimizer() -> None:
    plan = json.loads((FIXTURES / "recipe/optim.json").read_text())
    off = 0.0
    for group in plan["groups"]:
        names = list(group["params"])
        alone = group["kind"] == "adamw"
        for some in [[name] for name in names] if alone else [names]:
            off = max(off, optimizer_off(plan, group, some))
    check("optimizer", off, 1e-4)


def optimizer_off(plan: dict, group: dict, names: list[str]) -> float:
    """How far a stack of parameters is from the fixture over all steps."""
    tensors = safetensors(FIXTURES / "recipe/optim.safetensors")
    is_muon, rates, off = group["kind"] == "muon", plan["per_step"], 0.0
    p = torch.stack([tensors[f"init/{name}"] for name in names])
    state = muon_state(list(p)) if is_muon else (p * 0, p * 0)
    for it in range(plan["steps"]):
        g = torch.stack([tensors[f"grads/{it}/{name}"] for name in names])
        lr = torch.tensor(group["lr"] * rates["lr_multiplier"][it])
        if is_muon:
            mu = torch.tensor(rates["muon_momentum"][it])
            muon(p, g, *state, lr, mu, torch.tensor(rates["muon_weight_decay"][it]))
        else:
            betas, wd = torch.tensor(group["betas"]), torch.tensor(group["weight_decay"])
            adamw(p, g, *state, torch.tensor(it + 1.0), lr, betas, wd)
        want = torch.stack([tensors[f"params/{it}/{name}"] for name in names])
        off = max(off, far(p, want))
    return off


if __name__ == "__main__":
    check_model()
    check_cache()
    check_optimizer()
