"""Times the three products of a linear layer in PyTorch, as `nanochat bench ops` times ours.

In: M rows and a list of K x N (inputs x outputs of the layer). Out: one JSON object, GFLOP/s (2 M K
N over the median time) of each product: `forward` y = x W^T, `input grad` dx = dy W, `weight grad`
dW = dy^T x; x (M, K), W (N, K), y (M, N). Operands and results have the dtype asked for.
"""

import argparse

import torch
import torch.nn.functional as F

from measure import median_seconds, report, threads

SHAPES = "128x512,256x256,256x1024,384x384,384x1536,768x768,768x3072,384x32768"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--shapes", default=SHAPES, help="KxN, several with commas")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(threads(args.threads))
    torch.manual_seed(42)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    figures = {}
    for shape in args.shapes.split(","):
        k, n = map(int, shape.split("x"))
        for product, rate in rates(args.rows, k, n, dtype, args.runs).items():
            figures[f"{product} {args.rows} x {k} x {n}, GFLOP/s"] = rate / 1e9
    report(figures, {"torch": torch.__version__})


def rates(m: int, k: int, n: int, dtype: torch.dtype, runs: int) -> dict[str, float]:
    """FLOP/s of the three products of one layer."""
    x, w, dy = (torch.rand(shape).sub(0.5).to(dtype) for shape in ((m, k), (n, k), (m, n)))
    products = {
        "forward": lambda: F.linear(x, w),
        "input grad": lambda: dy @ w,
        "weight grad": lambda: dy.mT @ x,
    }
    return {name: 2 * m * k * n / median_seconds(f, runs) for name, f in products.items()}


if __name__ == "__main__":
    main()
