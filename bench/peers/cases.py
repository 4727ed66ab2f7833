"""What is compared: each case names our arguments, the peer's script, and nothing else.

In: nothing. Out: `CASES`. Both sides end with one JSON object; `our_figures` gives ours the names
that the peers' scripts use, and what both have is compared. A new comparison is a row here.
"""

import statistics
from dataclasses import dataclass
from typing import Any

from measure import generation_figure, prompt_figure


@dataclass(frozen=True)
class Case:
    """One comparison: arguments of `nanochat`, and of a script in this folder."""

    name: str
    peer: str
    ours: tuple[str, ...]
    script: tuple[str, ...]

    @property
    def compiles(self) -> bool:
        return "--compile" in self.script


# name: depth, rows of a micro batch, tokens of a step, steps timed.
SHAPES = {
    "d4": (4, 8, 4096, 3),
    "d6": (6, 8, 4096, 3),
    "d12": (12, 4, 2048, 3),
    "d6-full": (6, 32, 16384, 1),
}
# name: dtype of both, whether PyTorch compiles.
WAYS = {
    "bf16-compile": ("bf16", True),
    "bf16-eager": ("bf16", False),
    "f32-compile": ("f32", True),
    "f32-eager": ("f32", False),
}
# name: prompt, batches.
LOADS = {"long": (512, (1,)), "batch": (64, (1, 8, 32))}


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def train(shape: str, way: str) -> Case:
    depth, rows, total, steps = SHAPES[shape]
    dtype, compiled = WAYS[way]
    size = words(
        f"--depth {depth} --head-dim 64 --max-seq-len 512 --vocab-size 32768"
        f" --device-batch-size {rows} --total-batch-size {total} --steps {steps} --dtype {dtype}"
    )
    peer = f"PyTorch {dtype}, {'compiled' if compiled else 'eager'}"
    script = ("torch_train.py", *size, *(["--compile"] if compiled else []))
    return Case(f"train-{shape}-{way}", peer, ("bench", "train", *size), script)


def infer(depth: int, load: str, peer: str, script: str, weights: str = "auto") -> Case:
    """Ours meets each batch twice, and the second counts, as in the peers' scripts."""
    prompt, batches = LOADS[load]
    asked = f"--depth {depth} --prompts {prompt} --new-tokens 64"
    twice = ",".join(f"{n},{n}" for n in batches)
    ours = words(f"bench infer {asked} --head-dim 64 --batch-sizes {twice} --budget 0.1")
    ours += ("--weights", weights)
    once = ",".join(map(str, batches))
    theirs = words(f"{script} {asked} --batch-sizes {once}")
    program = script.split("_")[0]
    return Case(f"infer-d{depth}-{load}-{program}-{theirs[2]}", peer, ours, theirs)


def gemm(dtype: str) -> Case:
    return Case(
        f"gemm-{dtype}",
        f"PyTorch {dtype}",
        words(f"bench ops --rows 4096 --only products --dtype {dtype}"),
        words(f"torch_gemm.py --rows 4096 --dtype {dtype}"),
    )


def cases() -> list[Case]:
    found = [train(shape, way) for shape in SHAPES for way in WAYS]
    for depth in (6, 12):
        for load in LOADS:
            found.append(infer(depth, load, "PyTorch bf16, eager", "torch_infer.py --dtype bf16"))
            for kind in ("bf16", "f16", "q8_0"):
                peer, script = f"llama.cpp {kind.upper()}", f"llama_infer.py --type {kind}"
                weights = "int8" if kind == "q8_0" else "auto"
                found.append(infer(depth, load, peer, script, weights))
    return found + [gemm("bf16"), gemm("f32")]


CASES = cases()


def our_figures(bench: str, last_line: dict[str, Any]) -> dict[str, float]:
    """The figures in the last line of `nanochat bench BENCH`, under the peers' names."""
    return {"train": train_figures, "infer": infer_figures, "ops": gemm_figures}[bench](last_line)


def train_figures(line: dict[str, Any]) -> dict[str, float]:
    return {"tokens/sec": line["tokens_per_sec"], "peak bytes": line["peak_bytes"]}


def infer_figures(line: dict[str, Any]) -> dict[str, float]:
    """Of two cells with the same batch the second stands; the prompt's is their median."""
    cells = {cell["batch_size"]: cell for cell in line["sweep"] if cell["kv_cache"]}
    prompt = next(iter(cells.values()))["prompt"]
    first_ms = statistics.median(cell["ttft_ms"] for cell in cells.values())
    rates = {generation_figure(n, prompt): 1e3 * n / c["step_ms_p50"] for n, c in cells.items()}
    return {prompt_figure(prompt): 1e3 * prompt / first_ms, **rates}


def gemm_figures(line: dict[str, Any]) -> dict[str, float]:
    names = {
        "linear": "forward",
        "linear_input_grad": "input grad",
        "linear_weight_grad": "weight grad",
    }
    return {
        f"{names[row['op']]} {row['shape']}, GFLOP/s": row["flops_per_sec"] / 1e9
        for row in line["ops"]
        if row["op"] in names
    }
