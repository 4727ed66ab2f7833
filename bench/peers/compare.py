"""Runs nanochat and its peers in turn - ours, peer, ours, peer - and prints ratios with spread.

In: names of cases (globs; default: all) and the program to compare. Every run is a process of its
own. Out: a Markdown table on standard output, `--json FILE` with every single figure, `--svg FILE`
with a chart of the ratios. A ratio is ours divided by the peer's in the same round: of rates, above
1 is faster; of bytes, below 1 is less.
"""

import argparse
import contextlib
import fcntl
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import date
from fnmatch import fnmatch
from pathlib import Path

import chart
import machine
from cases import CASES, Case, our_figures

HERE = Path(__file__).resolve().parent
NANOCHAT = HERE.parents[1] / "target/release/nanochat"


@dataclass
class Row:
    """One figure of one case: what each round gave."""

    case: str
    peer: str
    figure: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.theirs)]


class Failed(Exception):
    """A process that did not end well: what it said last."""


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=["*"], help="names or globs; see --list")
    parser.add_argument("--list", action="store_true", help="name the cases and their commands")
    parser.add_argument("--nanochat", default=str(NANOCHAT), help="the program: %(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--svg", type=Path, help="draw the ratios into this file")
    parser.add_argument("--timeout", type=float, default=600, help="seconds a process may take")
    parser.add_argument("--lock", type=Path, help="hold an exclusive lock on this file in a round")
    return parser.parse_args()


def main() -> None:
    args = flags()
    chosen = [c for c in CASES if any(fnmatch(c.name, glob) for glob in args.cases)]
    if not chosen:
        raise SystemExit(f"no case is named {' or '.join(args.cases)}: see --list")
    if args.list:
        for case in chosen:
            print(case.name, *case.ours, "|", *case.script, sep=" ")
        return
    versions: dict[str, str] = {}
    rows: list[Row] = []
    left_out: list[str] = []
    for case in chosen:
        try:
            rows += compare(case, args, versions)
        except Failed as failed:
            left_out.append(f"{case.name}: {failed}")
    about = {"date": date.today().isoformat(), "machine": machine.name(), "rounds": args.rounds}
    about["versions"] = "; ".join(f"{name}: {version}" for name, version in versions.items())
    print(markdown(about, rows, left_out))
    if args.json:
        found = [{**asdict(row), "ratios": row.ratios} for row in rows]
        args.json.write_text(json.dumps({**about, "rows": found, "left_out": left_out}, indent=1))
    if args.svg:
        args.svg.write_text(chart.ratios([(label(row), row.ratios) for row in rows]))


def compare(case: Case, args: argparse.Namespace, versions: dict[str, str]) -> list[Row]:
    """All rounds of a case. What a compiler has to do once is done before the first."""
    rows: dict[str, Row] = {}
    version = machine.version(args.nanochat)
    script = [sys.executable, str(HERE / case.script[0]), *case.script[1:]]
    if case.compiles:
        with lock(args.lock, fcntl.LOCK_SH):
            last_line(script, args.timeout)
    for turn in range(args.rounds):
        with lock(args.lock, fcntl.LOCK_EX):
            line = last_line([args.nanochat, *case.ours], args.timeout)
            peer = last_line(script, args.timeout)
        ours = our_figures(case.ours[1], line)
        versions.update({f"nanochat on {line['backend']}": version, **peer["versions"]})
        for figure in (name for name in peer["figures"] if name in ours):
            row = rows.setdefault(figure, Row(case.name, case.peer, figure))
            row.ours.append(ours[figure])
            row.theirs.append(peer["figures"][figure])
        done = ", ".join(f"{row.ratios[-1]:.2f}" for row in rows.values())
        print(f"{case.name}, round {turn + 1}: {done}", file=sys.stderr)
    return list(rows.values())


@contextlib.contextmanager
def lock(path: Path | None, kind: int) -> Iterator[None]:
    """Holds a lock of this kind on the file: exclusive for what is timed, shared for the rest."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, kind)
        yield


def last_line(command: list[str], timeout: float) -> dict:
    """Runs a process; the JSON object in its last line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f"not done after {timeout:.0f} s: {' '.join(command)}") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit {done.returncode}"]
        raise Failed(f"{said[-1]} ({' '.join(command)})")
    return json.loads(done.stdout.strip().splitlines()[-1])


def label(row: Row) -> str:
    return f"{row.case}: {row.figure}"


def markdown(about: dict, rows: list[Row], left_out: list[str]) -> str:
    lines = [f"{name}: {value}  " for name, value in about.items()]
    lines += ["", "Medians (lowest-highest); ratios are of pairs, ours / peer.", ""]
    lines += ["| case | peer | figure | ours | peer's | ratio |", "|---|---|---|---|---|---|"]
    for row in rows:
        scale, figure = 1.0, row.figure
        if figure == "peak bytes":
            scale, figure = 1e-9, "peak memory, GB"
        ours, theirs = (spread([x * scale for x in side]) for side in (row.ours, row.theirs))
        ratio = spread(row.ratios)
        lines.append(f"| {row.case} | {row.peer} | {figure} | {ours} | {theirs} | {ratio} |")
    return "\n".join(lines + [f"\nleft out: {why}" for why in left_out])


def spread(values: list[float]) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    digits = 0 if middle >= 100 else 1 if middle >= 20 else 2
    return f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


if __name__ == "__main__":
    main()
