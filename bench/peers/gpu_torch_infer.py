"""Times greedy generation with a KV cache in PyTorch on one GPU, in three ways.

In: the sizes, prompt, batches and new tokens, as `nanochat bench infer` takes them. Weights are
bf16. `eager`: torch_infer.py's loop, with a growing cache and the ids read by the host after each
step, as upstream's engine works. `graph`: a cache of fixed length and one CUDA graph of a step's
eager kernels; nothing waits for the host. `compiled`: the same, with torch.compile's kernels in the
graph, while there is time to compile. Out: one JSON object, a cell for each way and batch; a cell
counts the second time it runs. `tokens_per_sec` takes the prompt's time in, `decode_tokens_per_sec`
does not.
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
from torch import Tensor

from measure import generation_figure
from torch_model import Cache, Config, Gpt

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
    parser.add_argument("--prompts", type=int, default=50, help="tokens of the prompt")
    parser.add_argument("--batch-sizes", default="1,8,32,93", help="several with commas")
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--ways", default="eager,graph,compiled", help="several with commas")
    parser.add_argument("--seconds", type=float, default=100, help="time for everything")
    parser.add_argument("--compile-seconds", type=float, default=60, help="of that, to compile")
    parser.add_argument("--json", type=Path, help="write the object to this file too")
    return parser.parse_args()


@dataclasses.dataclass(frozen=True)
class Job:
    """What is generated: `prompt` tokens as one row, then `new` in each of n."""

    model: Gpt
    prompt: int
    new: int
    device: str

    def prompt_ids(self) -> Tensor:
        ids = torch.arange(self.prompt, device=self.device).mul(7919).add(13)
        return ids.remainder(self.model.config.vocab_size).unsqueeze(0)

    def first_column(self, n: int) -> Tensor:
        """Rows begin with different ids, so that they are different."""
        ids = torch.arange(n, device=self.device).mul(104_729).add(1)
        return ids.remainder(self.model.config.vocab_size).unsqueeze(1)

    def prefill(self) -> Cache:
        """The prompt's keys and values, one row."""
        model = self.model
        cache = Cache(model.config, 1, self.prompt, model.dtype, self.device)
        model.step(self.prompt_ids(), cache)
        return cache

    def wait(self) -> float:
        """The time when the device has done everything."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class StaticCache(Cache):
    """A cache whose tensors never move and whose position is on the device: a graph can use it."""

    def __init__(self, job: Job, n: int) -> None:
        config, dtype = job.model.config, job.model.dtype
        # Rows of a mask must lie at multiples of 16 bytes.
        self.length = -(-(job.prompt + job.new) // 16) * 16
        super().__init__(config, n, self.length, dtype, job.device)
        for tensor in (*self.keys, *self.values):
            tensor.zero_()
        self.config, self.prompt = config, job.prompt
        self.at = torch.zeros(1, dtype=torch.long, device=job.device)
        self.places = torch.arange(self.length, device=job.device)
        self.previous = torch.zeros(n, 1, config.n_embd, dtype=dtype, device=job.device)
        self.column = torch.zeros(n, 1, dtype=torch.long, device=job.device)
        self.ids = torch.zeros(n, self.length, dtype=torch.long, device=job.device)
        self.masks: dict[int, Tensor] = {}

    def load(self, one: Cache, column: Tensor) -> None:
        """All rows start from the prompt's cache, in place."""
        for ours, theirs in zip((*self.keys, *self.values), (*one.keys, *one.values)):
            ours[:, :, : self.prompt] = theirs
        self.previous.copy_(one.previous.expand_as(self.previous))
        self.column.copy_(column)
        self.ids[:, self.prompt : self.prompt + 1] = column
        self.at.fill_(self.prompt)

    def look(self) -> None:
        """Masks of the step at hand, one for each window that layers have."""
        back = self.at - self.places
        for w in {self.config.window(i) for i in range(self.config.n_layer)}:
            seen = (back >= 0) & (back <= w)
            # To be added to the scores, so that no layer converts it.
            mask = torch.where(seen, 0.0, float("-inf")).to(self.previous.dtype)
            self.masks[w] = mask.view(1, 1, 1, -1)

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[layer].index_copy_(2, self.at, k)
        self.values[layer].index_copy_(2, self.at, v)
        return self.keys[layer], self.values[layer]

    def rope(self, cos: Tensor, sin: Tensor, t: int) -> tuple[Tensor, Tensor]:
        return cos.index_select(1, self.at), sin.index_select(1, self.at)

    def mask(self, layer: int) -> Tensor:
        return self.masks[self.config.window(layer)]

    def remember(self, last: Tensor) -> None:
        self.previous.copy_(last)


@torch.no_grad()
def static_step(model: Gpt, cache: StaticCache) -> None:
    """One column: the likeliest ids go where the next step reads them."""
    cache.look()
    logits = model.logits(model.hidden(cache.column, cache)[:, -1])
    cache.column.copy_(logits.argmax(-1, keepdim=True))
    cache.at.add_(1)
    cache.ids.index_copy_(1, cache.at, cache.column)


def main() -> None:
    args = flags()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("left out: torch sees no GPU")
        sys.exit(LEFT_OUT)
    torch.set_float32_matmul_precision("high")
    config = Config.of_depth(args.depth, args.head_dim, args.vocab_size, args.max_seq_len)
    tokens = args.prompts + args.new_tokens
    config = dataclasses.replace(
        config,
        window_pattern=args.window_pattern,
        sequence_len=max(args.max_seq_len, tokens),
    )
    # The growing cache knows no windows: where one would matter, there is none.
    if tokens > min(config.window(i) for i in range(config.n_layer)):
        config = dataclasses.replace(config, window_pattern="L")
    with torch.device(args.device):
        model = Gpt(config, torch.bfloat16).draw().cast_once().requires_grad_(False)
    job = Job(model, args.prompts, args.new_tokens, args.device)
    sizes = [int(n) for n in args.batch_sizes.split(",")]
    cells: list[dict] = []
    wanted: dict[int, Tensor] = {}
    compiling = 0.0
    for way in args.ways.split(","):
        # Both ends first: the time to compile may not last for all.
        for n in [*sizes[:1], *sizes[:0:-1]]:
            cell = {"way": way, "batch_size": n}
            cells.append(cell)
            if time.perf_counter() - START > args.seconds:
                cell["left_out"] = "no time left"
            elif way == "compiled" and compiling > args.compile_seconds:
                cell["left_out"] = f"compiled for {compiling:.0f} s"
            else:
                try:
                    got, ids = eager(job, n) if way == "eager" else static(job, n, way)
                except Exception as error:  # noqa: BLE001 - the other cells still count
                    cell["left_out"] = f"{type(error).__name__}: {str(error)[:500]}"
                    print(cell, flush=True)
                    continue
                compiling += got.get("compile_s", 0.0)
                # Random weights have near ties, after which rows go their own ways.
                same = wanted.setdefault(n, ids).eq(ids).float().mean().item()
                cell.update(got, same_ids_as_eager=same)
            print(cell, flush=True)
            # What there is so far, in case that time runs out.
            write(args, cells)
    print(write(args, cells))


def write(args: argparse.Namespace, cells: list[dict]) -> str:
    done = [c for c in cells if "decode_tokens_per_sec" in c]
    name = lambda c: f"{c['way']}: {generation_figure(c['batch_size'], args.prompts)}"  # noqa: E731
    figures = {name(c): c["decode_tokens_per_sec"] for c in done}
    found = {"depth": args.depth, "prompt": args.prompts, "new_tokens": args.new_tokens}
    if args.device == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
        found["device"] = torch.cuda.get_device_name()
    found["seconds"] = time.perf_counter() - START
    versions = {"torch": torch.__version__}
    line = json.dumps({"figures": figures, "versions": versions, "cells": cells, **found})
    if args.json:
        args.json.write_text(line + "\n")
    return line


def cell_of(job: Job, n: int, start: float, first: float, end: float, steps_ms: float) -> dict:
    return {
        "tokens_per_sec": n * job.new / (end - start),
        "decode_tokens_per_sec": n / steps_ms * 1e3,
        "step_ms": steps_ms,
        "first_ms": 1e3 * (first - start),
    }


@torch.no_grad()
def eager(job: Job, n: int) -> tuple[dict, Tensor]:
    """A growing cache; the host reads every column. The median step counts."""
    for new in (4, job.new):
        start = job.wait()
        cache = job.prefill().fork(job.model.config, n, job.prompt + job.new)
        columns = [job.first_column(n)]
        first = job.wait()
        ms = []
        for _ in range(new - 1):
            before = time.perf_counter()
            columns.append(job.model.step(columns[-1], cache).argmax(-1, keepdim=True))
            columns[-1].tolist()
            ms.append(1e3 * (time.perf_counter() - before))
        end = job.wait()
    return cell_of(job, n, start, first, end, statistics.median(ms)), torch.cat(columns, 1)


@torch.no_grad()
def static(job: Job, n: int, way: str) -> tuple[dict, Tensor]:
    """A cache of fixed length; on a GPU a step is one graph, on a CPU a call."""
    cache = StaticCache(job, n)
    cache.load(job.prefill(), job.first_column(n))
    found, call = {}, static_step
    if way == "compiled":
        torch._dynamo.reset()
        call = torch.compile(static_step, dynamic=False)
        before = job.wait()
        call(job.model, cache)
        found["compile_s"] = job.wait() - before
    step = captured(lambda: call(job.model, cache)) if job.device == "cuda" else (
        lambda: call(job.model, cache)
    )  # fmt: skip
    for _ in range(2):
        start = job.wait()
        cache.load(job.prefill(), job.first_column(n))
        first = job.wait()
        for _ in range(job.new - 1):
            step()
        end = job.wait()
    mean = 1e3 * (end - first) / (job.new - 1)
    ids = cache.ids[:, job.prompt : job.prompt + job.new].clone()
    return {**found, **cell_of(job, n, start, first, end, mean)}, ids


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """A step as one CUDA graph. It runs three times before: libraries allocate what they need."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


if __name__ == "__main__":
    main()
