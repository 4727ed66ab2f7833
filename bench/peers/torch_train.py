"""Times whole training steps of nanochat's model in PyTorch, as `nanochat bench train` times ours.

In: the sizes, by the same flags. A step: gradients of the micro batches on random tokens, then the
optimizer. Out: one JSON object: `tokens_per_sec` (from the median step) and `peak_bytes`. One step
(with `--compile`: and the compiler) runs before those that count.
"""

import argparse
import statistics

import torch

from measure import peak_bytes, report, seconds, threads
from torch_model import Config, Gpt
from torch_optim import Optimizer


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--device-batch-size", type=int, default=32)
    parser.add_argument("--total-batch-size", type=int, default=0, help="0: one micro batch")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = flags()
    torch.set_num_threads(threads(args.threads))
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    config = Config.of_depth(args.depth, args.head_dim, args.vocab_size, args.max_seq_len)
    model = Gpt(config, dtype).draw()
    optimizer = Optimizer(model, args.compile)
    loss_of = torch.compile(model, dynamic=False) if args.compile else model
    micro = args.device_batch_size * args.max_seq_len
    total = args.total_batch_size or micro
    if total % micro:
        raise SystemExit(f"{total} tokens are not whole micro batches of {micro}")

    def step() -> None:
        for _ in range(total // micro):
            ids = torch.randint(args.vocab_size, (micro + 1,))
            x, y = (part.view(-1, args.max_seq_len) for part in (ids[:-1], ids[1:]))
            (loss_of(x, y) * (micro / total)).backward()
        optimizer.step()

    step()
    rate = total / statistics.median(seconds(step) for _ in range(args.steps))
    figures = {"tokens/sec": rate, "peak bytes": peak_bytes()}
    report(figures, {"torch": torch.__version__})


if __name__ == "__main__":
    main()
