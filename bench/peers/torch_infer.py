"""Times generation with a KV cache in PyTorch, as `nanochat bench infer` times ours.

In: the sizes, prompt, batches and new tokens, by the same flags. The prompt is fed as one row, its
cache is copied to n rows, then columns of the likeliest ids are fed, not compiled, as upstream's
engine works. Weights are cast to the dtype once, before anything is timed. Out: one JSON object:
tokens a second of the prompt (its logits of the last position only) and, for each batch, n over the
median step. Each batch is done once before it counts.
"""

import argparse
import statistics
import time

import torch

from measure import generation_figure, prompt_figure, report, threads
from torch_model import Cache, Config, Gpt


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--prompts", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--batch-sizes", default="1", help="several with commas")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = flags()
    torch.set_num_threads(threads(args.threads))
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    config = Config.of_depth(args.depth, args.head_dim, args.vocab_size, args.max_seq_len)
    model = Gpt(config, dtype).draw().cast_once()
    first, figures = [], {}
    with torch.inference_mode():
        for n in map(int, args.batch_sizes.split(",")):
            generate(model, args.prompts, n, 4)
            prefill, step = generate(model, args.prompts, n, args.new_tokens)
            first.append(prefill)
            figures[generation_figure(n, args.prompts)] = n / step
    rate = args.prompts / statistics.median(first)
    figures = {prompt_figure(args.prompts): rate, **figures}
    report(figures, {"torch": torch.__version__})


def generate(model: Gpt, prompt: int, n: int, new_tokens: int) -> tuple[float, float]:
    """Seconds of the prompt and of the median step."""
    ids = torch.arange(prompt).mul(7919).remainder(model.config.vocab_size).unsqueeze(0)
    start = time.perf_counter()
    cache = Cache(model.config, 1, prompt, model.dtype)
    model.step(ids, cache)
    prefill = time.perf_counter() - start
    cache = cache.fork(model.config, n, prompt + new_tokens)
    column = torch.arange(n).mul(104_729).remainder(model.config.vocab_size).unsqueeze(1)
    steps = []
    for _ in range(new_tokens - 1):
        start = time.perf_counter()
        column = model.step(column, cache).argmax(-1, keepdim=True)
        steps.append(time.perf_counter() - start)
    return prefill, statistics.median(steps)


if __name__ == "__main__":
    main()
