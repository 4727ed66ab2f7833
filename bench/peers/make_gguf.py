"""Writes a GGUF file of a llama with random weights, as large as our model of the same depth.

In: depth, vocabulary, type of the matrices. Out: the file. A llama layer has 4 C^2 weights in its
attention and 3 C F in its MLP; F = 8 C / 3 makes that 12 C^2, what a layer of ours has, so that the
parameters that multiply are equal (gates aside): depth 6 has 23.2 million, depth 12 110.1. The
format (version 3, little endian): magic, counts, keys with values, one record a tensor, then the
tensors, each on a multiple of 32 bytes. There is no vocabulary: ids go in and logits come out.
"""

import argparse
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

ALIGN = 32
U32, F32, STRING = 4, 6, 8
TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
FILE_TYPES = {"f16": 1, "q8_0": 7, "bf16": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=32768)
    parser.add_argument("--max-seq-len", type=int, default=2048)
    parser.add_argument("--type", choices=("bf16", "f16", "q8_0"), default="bf16")
    args = parser.parse_args()
    width = -(-64 * args.depth // args.head_dim) * args.head_dim
    if width % 96:
        raise SystemExit(f"a width of {width}: 8 / 3 of it is not whole blocks of 32")
    tensors = llama_tensors(args.depth, width, args.vocab_size)
    with args.out.open("wb") as file:
        write(file, llama_keys(args, width), tensors, args.type)


def llama_keys(args: argparse.Namespace, width: int) -> dict[str, int | float | str]:
    heads = width // args.head_dim
    return {
        "general.architecture": "llama",
        "general.name": f"random weights, depth {args.depth}",
        "general.file_type": FILE_TYPES[args.type],
        "llama.vocab_size": args.vocab_size,
        "llama.context_length": args.max_seq_len,
        "llama.embedding_length": width,
        "llama.block_count": args.depth,
        "llama.feed_forward_length": 8 * width // 3,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": args.head_dim,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "none",
    }


def llama_tensors(depth: int, c: int, v: int) -> dict[str, tuple[int, ...]]:
    """Names with shapes, rows first."""
    f = 8 * c // 3
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (v, c)}
    for i in range(depth):
        layer = {"attn_q": (c, c), "attn_k": (c, c), "attn_v": (c, c), "attn_output": (c, c)}
        layer |= {"ffn_gate": (f, c), "ffn_up": (f, c), "ffn_down": (c, f)}
        layer |= {"attn_norm": (c,), "ffn_norm": (c,)}
        tensors |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return tensors | {"output_norm.weight": (c,), "output.weight": (v, c)}


def write(file: BinaryIO, keys: dict, tensors: dict[str, tuple[int, ...]], kind: str) -> None:
    """Writes the whole file; norms stay f32."""
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)))
    for key, value in keys.items():
        file.write(string(key) + typed(value))
    rng, offset = np.random.default_rng(42), 0
    kinds = {name: kind if len(shape) == 2 else "f32" for name, shape in tensors.items()}
    for name, shape in tensors.items():
        sizes = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        place = struct.pack("<IQ", TYPES[kinds[name]], offset)
        file.write(string(name) + struct.pack("<I", len(shape)) + sizes + place)
        offset += padded(byte_len(shape, kinds[name]))
    file.write(bytes(padded(file.tell()) - file.tell()))
    for name, shape in tensors.items():
        mean, std = (0.0, 0.02) if len(shape) == 2 else (1.0, 0.0)
        data = encode(mean + std * rng.standard_normal(shape, dtype=np.float32), kinds[name])
        file.write(data + bytes(padded(len(data)) - len(data)))


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def typed(value: int | float | str) -> bytes:
    """A value after its type."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + string(value)
    if isinstance(value, float):
        return struct.pack("<If", F32, value)
    return struct.pack("<II", U32, value)


def padded(n: int) -> int:
    return -(-n // ALIGN) * ALIGN


def byte_len(shape: tuple[int, ...], kind: str) -> int:
    n = int(np.prod(shape))
    return {"f32": 4 * n, "f16": 2 * n, "bf16": 2 * n, "q8_0": n // 32 * 34}[kind]


def encode(x: np.ndarray, kind: str) -> bytes:
    """bf16: the upper half of f32, to nearest even. q8_0: blocks of 32, an f16 scale and int8."""
    if kind in ("f32", "f16"):
        return x.astype("<f4" if kind == "f32" else "<f2").tobytes()
    if kind == "bf16":
        bits = x.astype("<f4").view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    blocks = x.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / 127
    out = np.empty(len(blocks), dtype=[("scale", "<f2"), ("q", "i1", 32)])
    out["scale"] = scale[:, 0]
    out["q"] = np.round(blocks / scale)
    return out.tobytes()


if __name__ == "__main__":
    main()
