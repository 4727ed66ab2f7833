"""What the figures were measured on. In: /proc and the programs. Out: a line for each."""

import os
import subprocess
from pathlib import Path

# The instructions that decide how fast matrices are multiplied.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def name() -> str:
    """Processor, cores that this process may use, instructions, memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    cores = len(os.sched_getaffinity(0))
    has = [i for i in INSTRUCTIONS if i in fields.get("flags", "").split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    model = fields.get("model name", "unknown processor")
    about = f"family {fields.get('cpu family', '?')}, model {fields.get('model', '?')}"
    return f"{model} ({about}), {cores} cores, {' '.join(has)}, {memory:.0f} GB"


def version(program: str) -> str:
    """The last word of `program --version`."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    except OSError as error:
        raise SystemExit(f"{error}: build it (cargo build --release) or give --nanochat") from None
    return said.stdout.split()[-1]
