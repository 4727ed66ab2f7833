"""Times training steps of nanochat's model in PyTorch on one GPU, as upstream trains it.

In: the sizes. The model and the optimizer are torch_model.py and torch_optim.py: weights f32 and cast
to bf16 in every product, tables and activations bf16, all of it compiled, windows SSSL. A step is one
micro batch of random tokens, forward and backward, then AdamW and Muon. Windowed layers attend
through flex_attention, full ones through the faster of cuDNN's and PyTorch's own flash attention,
timed beforehand; what cannot be compiled falls back, and the result says to what. Out: one JSON
object; every rate is of median times between device events, after the steps that compile.

`loss` is the compiled model's before the first step, `loss_eager` that of the same weights and
tokens without a compiler and with masks: they agree where the attention is right. With `--attention
causal` the two models differ.
"""

import time

START = time.perf_counter()

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from measure import peak_bytes
from torch_model import Config, Gpt
from torch_optim import Optimizer

# What upstream divides by: an H100's bf16 rate by its data sheet.
PEAK_FLOPS = 989e12
# Tokens of an upstream step; more micro batches than one share an optimizer step there.
UPSTREAM_STEP = 524_288
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}

# What a process ends with where it cannot run at all.
LEFT_OUT = 77


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--max-seq-len", type=int, default=2048)
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--window-pattern", default="SSSL")
    parser.add_argument("--device-batch-size", type=int, default=0, help="0: 32, from d13 on 16")
    parser.add_argument("--attention", choices=("flex", "causal"), default="flex",
                        help="of windowed layers; causal: they see everything before")  # fmt: skip
    parser.add_argument("--steps", type=int, default=20, help="steps timed, if there is time")
    parser.add_argument("--seconds", type=float, default=150, help="time for everything")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--json", type=Path, help="write the object to this file too")
    return parser.parse_args()


def main() -> None:
    args = flags()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("left out: torch sees no GPU")
        sys.exit(LEFT_OUT)
    torch.set_float32_matmul_precision("high")
    config = Config.of_depth(args.depth, args.head_dim, args.vocab_size, args.max_seq_len)
    config = dataclasses.replace(config, window_pattern=args.window_pattern)
    rows = args.device_batch_size or (32 if args.depth <= 12 else 16)
    # Drawn on the device; what runs later says itself where its tensors are.
    with torch.device(args.device):
        model = Gpt(config, torch.bfloat16).draw()
        ids = torch.randint(args.vocab_size, (4, rows * args.max_seq_len + 1))
    batches = [[part.view(rows, -1) for part in (row[:-1], row[1:])] for row in ids]
    on_gpu = args.device == "cuda"
    found: dict = {"loss_eager": attempt(lambda: eager_loss(model, *batches[0]))}
    sdpa = {}
    if on_gpu:
        torch.cuda.empty_cache()
        sdpa = {name: attempt(lambda: sdpa_ms(name, config, rows)) for name in BACKENDS}
    found["sdpa_ms"] = sdpa
    step, about = ready(model, batches, args, [n for n, ms in by_time(sdpa)])
    found |= about
    times = timed(step, batches, args)
    found |= rates(times, rows * args.max_seq_len, config)
    if on_gpu:
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
        found["reserved_bytes"] = torch.cuda.max_memory_reserved()
        found["device"] = torch.cuda.get_device_name()
    else:
        found |= {"peak_bytes": peak_bytes(), "device": "cpu"}
    found |= {"depth": args.depth, "device_batch_size": rows, "max_seq_len": args.max_seq_len}
    found |= {"seconds": time.perf_counter() - START}
    figures = {"tokens/sec": found["tokens_per_sec"], "peak bytes": found["peak_bytes"]}
    line = json.dumps({"figures": figures, "versions": {"torch": torch.__version__}, **found})
    if args.json:
        args.json.write_text(line + "\n")
    print(line)


def attempt(call: Callable[[], object]) -> object:
    """What a call gives, or what went wrong, as text."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - the peer goes on with the next way
        return f"{type(error).__name__}: {str(error)[:500]}"


def by_time(ms: dict[str, object]) -> list[tuple[str, float]]:
    """Those that ran, the fastest first."""
    ran = [(name, t) for name, t in ms.items() if isinstance(t, float)]
    return sorted(ran, key=lambda pair: pair[1])


@torch.no_grad()
def eager_loss(model: Gpt, x: Tensor, y: Tensor) -> float:
    """The loss with masks and without a compiler, row by row, as logits of all take much room."""
    return statistics.fmean(model(x[i : i + 1], y[i : i + 1]).item() for i in range(x.size(0)))


def sdpa_ms(name: str, config: Config, rows: int) -> float:
    """Milliseconds of causal attention, forward and backward, in one layer."""
    shape = (rows, config.sequence_len, config.n_head, config.head_dim)
    draw = lambda: torch.randn(shape, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    q, k, v = (draw().transpose(1, 2).requires_grad_() for _ in range(3))
    grad = draw().transpose(1, 2)
    marks = []
    with sdpa_kernel(BACKENDS[name]):
        for _ in range(8):
            marks.append(now(True))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            torch.autograd.grad(out, (q, k, v), grad)
    marks.append(now(True))
    return statistics.median(elapsed(a, b) for a, b in zip(marks[3:], marks[4:]))


def only(name: str) -> None:
    """Full layers attend through this from now on, whatever is compiled."""
    torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
    torch.backends.cuda.enable_flash_sdp(name == "flash")
    torch.backends.cuda.enable_mem_efficient_sdp(False)


def use_windows(model: Gpt, way: str) -> None:
    """Windowed layers attend through flex_attention, or as if they had no window."""
    t = model.config.sequence_len
    masks: dict[int, Callable[[Tensor, Tensor, Tensor], Tensor]] = {}
    for i, block in enumerate(model.transformer["h"]):
        window = model.config.window(i)
        if window >= t - 1:
            continue
        if window not in masks:
            masks[window] = flex(window, t, model.cos.device) if way == "flex" else full
        block.attn.windowed = masks[window]


def full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1))


def flex(window: int, t: int, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention of a query to itself and to `window` keys before it."""

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q - k <= window)

    mask = create_block_mask(seen, None, None, t, t, device=str(device))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=q.size(1) != k.size(1))

    return attend


# What a step gives: its marks before, after the backward pass, and after the optimizer.
Step = Callable[[Tensor, Tensor], tuple]


def ready(model: Gpt, batches: list, args: argparse.Namespace, sdpa: list[str]) -> tuple[Step, dict]:
    """A step that has compiled and run, in the best way that works, and what that is."""
    if args.device == "cuda":
        # Both attentions in the order of their times, the first with the best windows.
        full_ways = sdpa or ["flash"]
        ways = [(args.attention, way) for way in full_ways]
        ways += [("causal", way) for way in full_ways if args.attention != "causal"]
    else:
        # There is no backward pass through flex_attention on a CPU: masks.
        ways = [("causal" if args.attention == "causal" else "mask", "sdpa")]
    failed = {}
    for windows, way in ways:
        if failed and time.perf_counter() - START > 0.6 * args.seconds and windows != "causal":
            failed[f"{windows}, {way}"] = "no time left to try"
            continue
        if args.device == "cuda":
            only(way)
        if windows != "mask":
            use_windows(model, windows)
        torch._dynamo.reset()
        start = time.perf_counter()
        got = attempt(lambda: first_steps(model, batches, args))
        if not isinstance(got, str):
            step, loss = got
            about = {"windows": windows, "attention": way, "loss": loss, "failed": failed}
            return step, {**about, "compile_s": time.perf_counter() - start}
        failed[f"{windows}, {way}"] = got
        model.zero_grad(set_to_none=True)
        if args.device == "cuda":
            torch.cuda.empty_cache()
        print(f"windows {windows}, attention {way}: {got}", flush=True)
    raise SystemExit(f"nothing works: {failed}")


def first_steps(model: Gpt, batches: list, args: argparse.Namespace) -> tuple[Step, float]:
    """Compiles; two steps run. The optimizer starts anew, as do its moments."""
    on_gpu = args.device == "cuda"
    loss_of = model if args.eager else torch.compile(model, dynamic=False)
    optimizer = Optimizer(model, not args.eager)

    def step(x: Tensor, y: Tensor) -> tuple:
        before = now(on_gpu)
        loss_of(x, y).backward()
        between = now(on_gpu)
        optimizer.step()
        return before, between, now(on_gpu)

    loss = loss_of(*batches[0])
    loss.backward()
    optimizer.step()
    for batch in batches[1:3]:
        step(*batch)
    return step, loss.item()


def timed(step: Step, batches: list, args: argparse.Namespace) -> list[tuple[float, float]]:
    """Milliseconds of forward and backward, and of the optimizer, of every step."""
    on_gpu = args.device == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start, marks = time.perf_counter(), []
    for i in range(max(args.steps, 3)):
        marks.append(step(*batches[i % len(batches)]))
        # The host runs ahead of the device: look at the time where both have met.
        if i % 5 == 2:
            elapsed(*marks[-1][:2])
            took = (time.perf_counter() - start) / (i + 1)
            if time.perf_counter() - START + 5 * took > args.seconds:
                break
    return [(elapsed(a, b), elapsed(b, c)) for a, b, c in marks]


def now(on_gpu: bool) -> object:
    """A moment: of the device, in its queue, or of the clock."""
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def elapsed(a, b) -> float:
    """Milliseconds between two moments, waiting for the second."""
    if isinstance(a, float):
        return 1e3 * (b - a)
    b.synchronize()
    return a.elapsed_time(b)


def rates(times: list[tuple[float, float]], tokens: int, config: Config) -> dict:
    micro = statistics.median(a for a, _ in times)
    optimizer = statistics.median(b for _, b in times)
    whole = [a + b for a, b in times]
    flops = config.train_flops_per_token()
    several = max(UPSTREAM_STEP // tokens, 1)
    large = tokens * several / (several * micro + optimizer) * 1e3
    step = statistics.median(whole)
    return {
        "tokens_per_sec": tokens / step * 1e3,
        "mfu": flops * tokens / step * 1e3 / PEAK_FLOPS,
        "step_ms": step,
        "step_ms_low_high": [min(whole), max(whole)],
        "micro_step_ms": micro,
        "micro_tokens_per_sec": tokens / micro * 1e3,
        "optimizer_ms": optimizer,
        # From the two times above, not run: how upstream trains, with its batch.
        "derived_tokens_per_sec_of_large_steps": large,
        "derived_mfu_of_large_steps": flops * large / PEAK_FLOPS,
        "large_step_tokens": tokens * several,
        "flops_per_token": flops,
        "steps_timed": len(times),
    }


if __name__ == "__main__":
    main()
