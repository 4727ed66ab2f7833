#!/usr/bin/env python3
"""Compiles every kernel for every target without a GPU and holds it to a budget.

In: the folder that NVRTC's and ptxas's wheels are unpacked in. Every ../kernels/*.cu is compiled for
TARGETS with the options of nvrtc_options.txt, then assembled; `ptxas -v` says how many registers and
spilled bytes each kernel takes. Out: a line for each file and target, and an error where a kernel
takes more than budget.tsv allows or is not in it. `--update` writes budget.tsv anew.
"""

import argparse
import ctypes
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent / "kernels"
BUDGET = HERE / "budget.tsv"
HEADER = ("kernel", "arch", "registers", "spill_bytes")
# Ampere, Hopper, and both kinds of Blackwell; "a" allows what only that chip has.
TARGETS = ("80", "90a", "100a", "120a")

# Kernel and target, to registers and spilled bytes.
Use = dict[tuple[str, str], tuple[int, int]]


class Failed(Exception):
    """A kernel that does not compile: what the compiler said."""


@dataclass
class Compiled:
    """One file for one target."""

    file: str
    arch: str
    use: Use = field(default_factory=dict)
    nvrtc_s: float = 0.0
    ptxas_s: float = 0.0
    error: str = ""


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, required=True, help="folder that holds nvidia/")
    parser.add_argument("--kernels", type=Path, default=KERNELS, help="default: %(default)s")
    parser.add_argument("--budget", type=Path, default=BUDGET, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="processes: %(default)s")
    parser.add_argument("--update", action="store_true", help="write the budget anew")
    return parser.parse_args()


def main() -> None:
    args = flags()
    start = time.perf_counter()
    files = sorted(args.kernels.glob("*.cu"))
    jobs = [(args.wheels, file, target) for file in files for target in TARGETS]
    use: Use = {}
    errors: list[str] = []
    said: set[str] = set()
    with ProcessPoolExecutor(max_workers=args.jobs) as pool:
        for done in pool.map(compile_one, *zip(*jobs)) if jobs else ():
            print(line(done), flush=True)
            # Every target stumbles over the same line: once is enough.
            if done.error and done.error not in said:
                print(done.error, flush=True)
                errors.append(f"{done.file}: does not compile")
            if done.error:
                said.add(done.error)
            use.update(done.use)
    if args.update and not errors:
        write_budget(args.budget, use)
    errors += [] if args.update else over_budget(use, read_budget(args.budget))
    for error in errors:
        print(f"error: {error}")
    if errors and not args.update:
        print("if more registers or spills are meant: .ci/kernels --update, and commit budget.tsv")
    kernels = len({name for name, _ in use})
    print(
        f"GPU kernels: {kernels} in {len(files)} files for {len(TARGETS)} targets,"
        f" {len(errors)} errors, {time.perf_counter() - start:.1f} s"
        + (f"; {args.budget.name} written" if args.update and not errors else "")
    )
    sys.exit(1 if errors else 0)


def line(done: Compiled) -> str:
    took = f"nvrtc {done.nvrtc_s:.2f} s, ptxas {done.ptxas_s:.2f} s"
    if done.error:
        return f"{done.file} {done.arch}: FAILED ({took})"
    registers = max((r for r, _ in done.use.values()), default=0)
    spills = sum(s for _, s in done.use.values())
    return (
        f"{done.file} {done.arch}: {len(done.use)} kernels, at most {registers} registers,"
        f" {spills} bytes spilled ({took})"
    )


def compile_one(wheels: Path, file: Path, target: str) -> Compiled:
    done = Compiled(file.name, f"sm_{target}")
    try:
        start = time.perf_counter()
        try:
            text = ptx(wheels, file, target)
        finally:
            done.nvrtc_s = time.perf_counter() - start
        start = time.perf_counter()
        try:
            said = assemble(wheels, text, done.arch)
        finally:
            done.ptxas_s = time.perf_counter() - start
        done.use = {(name, done.arch): use for name, use in parse(said).items()}
        if not done.use:
            raise Failed(f"{file.name}: there is no kernel in it")
    except Failed as failed:
        done.error = str(failed).rstrip()
    return done


def source(file: Path, seen: set[Path] | None = None) -> str:
    """The file's text with every `#include "x.cuh"` replaced by that file, each once."""
    seen = set() if seen is None else seen
    seen.add(file)
    lines = [f'#line 1 "{file.name}"']
    for number, text in enumerate(file.read_text().splitlines(), 1):
        include = re.match(r'\s*#\s*include\s+"([^"]+\.cuh)"', text)
        if re.match(r"\s*#\s*pragma\s+once\b", text):
            lines.append("")
        elif include:
            other = file.parent / include[1]
            if other not in seen:
                lines.append(source(other, seen))
            lines.append(f'#line {number + 1} "{file.name}"')
        else:
            lines.append(text)
    return "\n".join(lines) + "\n"


def options(folder: Path) -> list[str]:
    """One option a line; empty lines and those that begin with # do not count."""
    lines = (text.strip() for text in (folder / "nvrtc_options.txt").read_text().splitlines())
    return [text for text in lines if text and not text.startswith("#")]


def ptx(wheels: Path, file: Path, target: str) -> bytes:
    """What NVRTC makes of a file. Warnings count as errors: nobody reads them in a log."""
    nvrtc = ctypes.CDLL(str(wheels / "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"))
    program = ctypes.c_void_p()
    text, name = source(file).encode(), file.name.encode()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None)
    # Where this folder's options are missing (a test's own folder), the product's count.
    folder = file.parent if (file.parent / "nvrtc_options.txt").exists() else KERNELS
    asked = [f"--gpu-architecture=compute_{target}", *options(folder)]
    array = (ctypes.c_char_p * len(asked))(*(option.encode() for option in asked))
    code = nvrtc.nvrtcCompileProgram(program, len(asked), array)
    log = text_of(nvrtc, "ProgramLog", program).decode(errors="replace").strip("\0\n ")
    if code != 0 or "warning" in log:
        raise Failed(log or f"NVRTC's error {code}")
    found = text_of(nvrtc, "PTX", program).rstrip(b"\0")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return found


def text_of(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw


def assemble(wheels: Path, text: bytes, arch: str) -> str:
    """What `ptxas -v` says."""
    program = wheels / "nvidia/cuda_nvcc/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.ptx"
        path.write_bytes(text)
        command = [program, "-v", f"-arch={arch}", path, "-o", path.with_suffix(".cubin")]
        done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode != 0:
        raise Failed(said or f"ptxas ended with {done.returncode}")
    return said


def parse(said: str) -> dict[str, tuple[int, int]]:
    """Registers and spilled bytes of every kernel.

    Properties of functions that were not inlined follow those of the kernel that calls them, before
    the line with its registers; their spills count as its own.
    """
    found: dict[str, tuple[int, int]] = {}
    name, spills = "", 0
    for text in said.splitlines():
        if match := re.search(r"Compiling entry function '([^']+)'", text):
            name, spills = match[1], 0
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text):
            spills += int(match[1]) + int(match[2])
        elif (match := re.search(r"Used (\d+) registers", text)) and name:
            found[name] = int(match[1]), spills
            name = ""
    return found


def over_budget(use: Use, budget: Use) -> list[str]:
    errors = []
    for name in sorted({name for name, arch in use if (name, arch) not in budget}):
        found = (f"{arch} {use[n, arch][0]}" for n, arch in use if n == name)
        errors.append(f"{name}: not in the budget (registers: {', '.join(found)})")
    for (name, arch), (registers, spills) in sorted(use.items()):
        if (name, arch) not in budget:
            continue
        most_registers, most_spills = budget[name, arch]
        if registers > most_registers:
            errors.append(f"{name}, {arch}: {registers} registers, {most_registers} allowed")
        if spills > most_spills:
            errors.append(f"{name}, {arch}: {spills} bytes spilled, {most_spills} allowed")
    for name in sorted({name for name, _ in budget} - {name for name, _ in use}):
        print(f"note: {name} is in the budget, and in no file")
    return errors


def read_budget(path: Path) -> Use:
    budget: Use = {}
    for text in path.read_text().splitlines()[1:] if path.exists() else ():
        name, arch, registers, spills = text.split("\t")
        budget[name, arch] = int(registers), int(spills)
    return budget


def write_budget(path: Path, use: Use) -> None:
    order = {f"sm_{target}": i for i, target in enumerate(TARGETS)}
    rows = sorted(use.items(), key=lambda row: (row[0][0], order[row[0][1]]))
    lines = ["\t".join(HEADER)]
    lines += [f"{name}\t{arch}\t{r}\t{s}" for (name, arch), (r, s) in rows]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
