"""What runs/gpu_bench.sh measured, as Markdown and JSON. Standard library only.

In: `--parts`, a folder with steps.tsv and, for each step, NAME.out, .err, .command, perhaps .json. A
step's figures are the object in NAME.json, else in the last line of NAME.out that is one. Out:
gpu_bench.md, gpu_bench.json and gpu_bench.log in `--out`; the Markdown on standard output too.

PREDICTIONS stand beside what was measured: made beforehand from arithmetic and published rates, for
one H100, and never changed to fit. Tables inside a step's object (lists of objects) are printed as
they are, whatever their columns.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

# Objects of the steps, by name.
Found = dict[str, dict]


@dataclass(frozen=True)
class Prediction:
    """A figure in `unit`: what was expected of it, the aim, and what no program can pass."""

    what: str
    unit: str
    low: float | None
    high: float | None
    aim: float | None
    limit: float | None
    get: Callable[[Found], float | None]


def at(step: str, *keys: str, scale: float = 1.0) -> Callable[[Found], float | None]:
    """The number under these keys of a step's object."""

    def get(found: Found) -> float | None:
        value: object = found.get(step)
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value * scale if isinstance(value, (int, float)) else None

    return get


def ours(step: str, rows: int, key: str = "tokens_per_sec") -> Callable[[Found], float | None]:
    """A figure of `bench infer` with its cache, at a batch."""

    def get(found: Found) -> float | None:
        for cell in found.get(step, {}).get("sweep", []):
            if cell.get("batch_size") == rows and cell.get("kv_cache"):
                return cell.get(key)
        return None

    return get


def peer(rows: int, *ways: str) -> Callable[[Found], float | None]:
    """Tokens a second of the PyTorch peer at a batch, the best of these ways."""

    def get(found: Found) -> float | None:
        cells = found.get("torch-infer", {}).get("cells", [])
        fits = (c for c in cells if c.get("batch_size") == rows and c.get("way") in ways)
        return max((c["tokens_per_sec"] for c in fits if "tokens_per_sec" in c), default=None)

    return get


WAYS = ("eager", "graph", "compiled")
# Where a column is empty nothing was predicted.
PREDICTIONS = (
    Prediction("copy, read + written", "TB/s", 3.0, 3.0, None, 3.35,
               at("kernels", "copy_bytes_per_sec", scale=1e-12)),
    Prediction("matmul 8192^3 bf16", "TFLOP/s", 790, 790, None, 989,
               at("kernels", "product_flops_per_sec", scale=1e-12)),
    Prediction("train d12, 32 rows of 2048", "tokens/sec", 350e3, 420e3, 520e3, 1088e3,
               at("train-d12", "tokens_per_sec")),
    Prediction("train d20, 16 rows of 2048", "tokens/sec", 110e3, 130e3, 165e3, 283e3,
               at("train-d20", "tokens_per_sec")),
    Prediction("train d12, memory of the device", "GB", None, None, 32 * 0.45, None,
               at("train-d12", "planned_bytes", scale=1e-9)),
    Prediction("generate d12, 1 row", "tokens/sec", 6.0e3, 6.4e3, 6e3, 13.6e3,
               ours("infer-d12", 1)),
    Prediction("generate d12, 93 rows", "tokens/sec", None, None, 60e3, None,
               ours("infer-d12", 93)),
    Prediction("with cache / without, lowest", "x", None, None, 1.0, None,
               at("infer-d12", "lowest_ratio")),
    Prediction("generate seed d12, 1 row (published: 100.8 on an A100)", "tokens/sec", None, None,
               100.8, None, ours("infer-seed-d12", 1)),
    Prediction("generate seed d12, 93 rows (published: 9,056 on an A100)", "tokens/sec", None, None,
               9056, None, ours("infer-seed-d12", 93)),
    Prediction("batch size, seconds to find it (published: 20.3)", "s", None, None, 2.5, None,
               at("batch-size", "discovery_s")),
    Prediction("PyTorch, train d12 (upstream: 457-586 k)", "tokens/sec", 457e3, 586e3, None, 1088e3,
               at("torch-train-d12", "tokens_per_sec")),
    Prediction("PyTorch, train d20 (upstream: 134-171 k)", "tokens/sec", 134e3, 171e3, None, 283e3,
               at("torch-train-d20", "tokens_per_sec")),
    Prediction("PyTorch, generate d12, 1 row, eager", "tokens/sec", 400, 600, None, 13.6e3,
               peer(1, "eager")),
)  # fmt: skip
# Less is better: aims are met from below.
LESS = {"GB", "s"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    steps = read_steps(args.parts)
    found = {step["name"]: step["figures"] for step in steps if step["figures"]}
    card = next((s["tail"][-1] for s in steps if s["name"] == "card" and s["rc"] == "0"), None)
    whole = {
        "date": date.today().isoformat(),
        "card": card,
        "predictions": [row_of(p, found) for p in PREDICTIONS],
        "steps": steps,
    }
    text = markdown(whole, found)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpu_bench.json").write_text(json.dumps(whole, indent=1) + "\n")
    (args.out / "gpu_bench.md").write_text(text)
    (args.out / "gpu_bench.log").write_text("".join(log(args.parts, steps)))
    print(text)


def read_steps(parts: Path) -> list[dict]:
    steps = []
    for line in (parts / "steps.tsv").read_text().splitlines():
        letter, name, rc, seconds, note = line.split("\t")
        out = text_of(parts / f"{name}.out")
        steps.append(
            {
                "letter": letter,
                "name": name,
                "command": text_of(parts / f"{name}.command").strip(),
                "rc": rc,
                "seconds": float(seconds),
                "note": note,
                "figures": figures_of(text_of(parts / f"{name}.json"), out),
                "tail": [t[:300] for t in out.splitlines()[-30:] if not t.startswith("{")],
                "errors": text_of(parts / f"{name}.err").splitlines()[-20:] if rc != "0" else [],
            }
        )
    return steps


def figures_of(file: str, out: str) -> dict | None:
    for text in (file, *reversed(out.splitlines())):
        if text.lstrip().startswith("{"):
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(value, dict):
                return value
    return None


def text_of(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def row_of(p: Prediction, found: Found) -> dict:
    value = p.get(found)
    verdict = "not measured"
    if value is not None:
        verdict = "; ".join(words(p, value))
    expected = {"low": p.low, "high": p.high, "aim": p.aim, "limit": p.limit}
    return {"what": p.what, "unit": p.unit, **expected, "measured": value, "verdict": verdict}


def words(p: Prediction, value: float) -> Iterator[str]:
    """How a figure stands to what was said of it."""
    if p.low is not None and p.high is not None:
        if value < 0.85 * p.low:
            yield f"{1 - value / p.low:.0%} below the prediction: to be explained"
        elif value > 1.15 * p.high:
            yield f"{value / p.high - 1:.0%} above the prediction: to be explained"
        else:
            yield "as predicted"
    if p.aim is not None:
        met = value <= p.aim if p.unit in LESS else value >= p.aim
        yield "aim met" if met else f"{value / p.aim:.0%} of the aim"
    if p.limit is not None:
        yield f"{value / p.limit:.0%} of the limit"


def markdown(whole: dict, found: Found) -> str:
    lines = ["# GPU benchmark", "", f"Date: {whole['date']}  "]
    lines += [f"Card, driver: {whole['card'] or 'not known'}  "]
    versions = (f.get("versions", {}).get("torch") for f in found.values())
    lines += [f"PyTorch: {next((v for v in versions if v), 'not run')}", ""]
    lines += ["## Predictions beside measurements", ""]
    lines += rows(
        ("figure", "unit", "predicted", "aim", "limit", "measured", "how it stands"),
        [
            (r["what"], r["unit"], span(r["low"], r["high"]), number(r["aim"]), number(r["limit"]),
             number(r["measured"]), r["verdict"])
            for r in whole["predictions"]
        ],
    )  # fmt: skip
    lines += beside(found)
    for name, value in found.items():
        lines += ["", f"## {name}", "", *show(value)]
    lines += ["", "## Steps", ""]
    body = [
        (s["letter"], s["name"], s["rc"], f"{s['seconds']:.1f}", s["note"]) for s in whole["steps"]
    ]
    lines += rows(("step", "name", "rc", "seconds", ""), body)
    for step in whole["steps"]:
        if step["errors"]:
            lines += ["", f"{step['name']}:", "", "```", *(t[:300] for t in step["errors"]), "```"]
    return "\n".join(lines) + "\n"


def beside(found: Found) -> list[str]:
    """Ours over the PyTorch peer, where both ran."""
    pairs = [
        (f"train {d}", at(f"train-{d}", "tokens_per_sec"), at(f"torch-train-{d}", "tokens_per_sec"))
        for d in ("d12", "d20")
    ]
    for n in (1, 8, 32, 93):
        for ways in (WAYS[:1], WAYS):
            name = "eager" if len(ways) == 1 else "the best of its ways"
            pairs.append((f"generate d12, {n} rows, {name}", ours("infer-d12", n), peer(n, *ways)))
    table = []
    for what, mine, theirs in pairs:
        a, b = mine(found), theirs(found)
        if a is not None and b:
            table.append((what, number(a), number(b), f"{a / b:.2f}"))
    if not table:
        return []
    head = ("tokens/sec", "ours", "PyTorch", "ours / PyTorch")
    return ["", "## Beside PyTorch, in this run", "", *rows(head, table)]


def show(value: dict) -> list[str]:
    """An object: its scalars in a line each, its lists of objects as tables."""
    lines, tables = [], []
    for key, inner in value.items():
        if key in ("figures", "versions"):
            continue
        if isinstance(inner, list) and inner and all(isinstance(r, dict) for r in inner):
            names = list(dict.fromkeys(k for r in inner for k in r))
            flat = [n for n in names if not any(isinstance(r.get(n), (dict, list)) for r in inner)]
            body = [tuple(number(r.get(n)) for n in flat) for r in inner]
            tables += ["", f"{key}:", "", *rows(tuple(flat), body)]
        elif isinstance(inner, dict) and inner and not any(
            isinstance(v, (dict, list)) for v in inner.values()
        ):
            lines.append(f"- {key}: " + ", ".join(f"{k} {number(v)}" for k, v in inner.items()))
        elif isinstance(inner, list) and all(isinstance(v, (int, float)) for v in inner) and inner:
            lines.append(f"- {key}: {', '.join(map(number, inner[:20]))}")
        elif isinstance(inner, (dict, list)) and inner:
            lines.append(f"- {key}: in gpu_bench.json")
        else:
            lines.append(f"- {key}: {number(inner) if inner or inner in (0, False) else 'none'}")
    return lines + tables


def rows(head: tuple[str, ...], body: list[tuple]) -> list[str]:
    cells = [head, ("---",) * len(head), *body]
    return ["| " + " | ".join(str(c).replace("|", "/") for c in row) + " |" for row in cells]


def span(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return number(low) if low == high else f"{number(low)}-{number(high)}"


def number(value: object) -> str:
    """Four digits that count, whole thousands with commas; words as they are."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return " ".join(str(value).split())[:200]
    if value == 0 or (isinstance(value, int) and abs(value) < 1e6):
        return f"{value:,}"
    if abs(value) >= 1e12:
        return f"{value / 1e12:,.4g} T"
    if abs(value) >= 1e9:
        return f"{value / 1e9:,.4g} G"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def log(parts: Path, steps: list[dict]) -> Iterator[str]:
    for step in steps:
        yield f"== {step['name']}: {step['command']}\n"
        yield text_of(parts / f"{step['name']}.out")
        yield text_of(parts / f"{step['name']}.err")
        yield f"-- rc {step['rc']}, {step['seconds']} s\n\n"


if __name__ == "__main__":
    main()
