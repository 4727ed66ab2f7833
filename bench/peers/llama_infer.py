"""Times generation in llama.cpp: a prompt, then columns of one id for each of n rows.

In: a file of make_gguf.py, or a depth and a type to make one in a temporary folder. Out: one JSON
object: tokens a second of the prompt (its logits of the last position only) and, for each batch, n
over the median step with the likeliest ids taken from the logits. Each batch is done once before it
counts. llama.cpp's defaults hold, but for the number of threads and for flash attention: it is off
unless `--flash-attention`, as on CPUs it slows generation after a long prompt.
"""

import argparse
import ctypes
import statistics
import sys
import tempfile
import time
from pathlib import Path
from subprocess import run

import llama_cpp as ll
import numpy as np

from measure import generation_figure, prompt_figure, report, threads


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, help="default: one of random weights is made")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--type", choices=("bf16", "f16", "q8_0"), default="bf16")
    parser.add_argument("--prompts", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--batch-sizes", default="1", help="several with commas")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--flash-attention", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = flags()
    with tempfile.TemporaryDirectory() as folder:
        path = args.gguf or Path(folder) / "model.gguf"
        if not args.gguf:
            script = Path(__file__).with_name("make_gguf.py")
            size = ["--depth", str(args.depth), "--type", args.type]
            run([sys.executable, script, path, *size], check=True)
        figures = measure(path, args)
    report(figures, {"llama-cpp-python": ll.__version__})


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def silent(level: int, text: bytes, data: object) -> None:
    """Drops llama.cpp's log, but its errors (level 4)."""
    if level == 4:
        sys.stderr.write(text.decode())


def measure(path: Path, args: argparse.Namespace) -> dict[str, float]:
    ll.llama_log_set(silent, None)
    model = ll.llama_model_load_from_file(str(path).encode(), ll.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp does not load {path}")
    vocab_size = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    first, figures = [], {}
    for n in map(int, args.batch_sizes.split(",")):
        length = args.prompts + args.new_tokens
        rows = Rows(model, vocab_size, n, length, threads(args.threads), args.flash_attention)
        rows.generate(args.prompts, 4)
        prefill, step = rows.generate(args.prompts, args.new_tokens)
        rows.free()
        first.append(prefill)
        figures[generation_figure(n, args.prompts)] = n / step
    rate = args.prompts / statistics.median(first)
    return {prompt_figure(args.prompts): rate, **figures}


class Rows:
    """A context that generates n rows from one prompt."""

    def __init__(
        self, model: object, vocab_size: int, n: int, length: int, threads: int, flash: bool
    ) -> None:
        params = ll.llama_context_default_params()
        params.flash_attn_type = int(flash)
        params.n_ctx = n * length
        params.n_seq_max, params.n_batch = n, max(length, n)
        params.n_threads = params.n_threads_batch = threads
        self.n, self.vocab_size = n, vocab_size
        self.context = ll.llama_init_from_model(model, params)
        if not self.context:
            raise SystemExit("llama.cpp makes no context")
        self.batch = ll.llama_batch_init(max(length, n), 0, 1)

    def free(self) -> None:
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.context)

    def generate(self, prompt: int, new_tokens: int) -> tuple[float, float]:
        """Seconds of the prompt, in row 0, and of the median step of all rows."""
        memory = ll.llama_get_memory(self.context)
        ll.llama_memory_clear(memory, True)
        start = time.perf_counter()
        ids = [i * 7919 % self.vocab_size for i in range(prompt)]
        self.feed([(id, i, 0, i == prompt - 1) for i, id in enumerate(ids)])
        self.likeliest(prompt - 1)
        prefill = time.perf_counter() - start
        for row in range(1, self.n):
            ll.llama_memory_seq_cp(memory, 0, row, -1, -1)
        column = [row * 104_729 % self.vocab_size for row in range(self.n)]
        steps = []
        for position in range(prompt, prompt + new_tokens - 1):
            start = time.perf_counter()
            self.feed([(id, position, row, True) for row, id in enumerate(column)])
            column = [self.likeliest(row) for row in range(self.n)]
            steps.append(time.perf_counter() - start)
        return prefill, statistics.median(steps)

    def feed(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """Runs (id, position, row, whether its logits are wanted) through the model."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (id, position, row, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = id, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
        if ll.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")

    def likeliest(self, i: int) -> int:
        """The likeliest id by the logits of token i of the batch."""
        logits = ll.llama_get_logits_ith(self.context, i)
        return int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())


if __name__ == "__main__":
    main()
