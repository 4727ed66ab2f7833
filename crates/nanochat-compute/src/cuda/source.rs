//! The kernels' sources.

use sha2::{Digest, Sha256};

/// Files with kernels.
const FILES: [(&str, &str); 12] = [
    ("streams.cu", include_str!("kernels/streams.cu")),
    ("rows.cu", include_str!("kernels/rows.cu")),
    ("scatter.cu", include_str!("kernels/scatter.cu")),
    ("loss.cu", include_str!("kernels/loss.cu")),
    ("optim.cu", include_str!("kernels/optim.cu")),
    ("linear.cu", include_str!("kernels/linear.cu")),
    ("step.cu", include_str!("kernels/step.cu")),
    ("attention.cu", include_str!("kernels/attention.cu")),
    ("attention_cached.cu", include_str!("kernels/attention_cached.cu")),
    ("attention_step.cu", include_str!("kernels/attention_step.cu")),
    ("program.cu", include_str!("kernels/program.cu")),
    ("attention_wgmma.cu", include_str!("kernels/attention_wgmma.cu")),
];

/// Files that others include.
const HEADERS: [(&str, &str); 12] = [
    ("device.cuh", include_str!("kernels/device.cuh")),
    ("exchange.cuh", include_str!("kernels/exchange.cuh")),
    ("program.cuh", include_str!("kernels/program.cuh")),
    ("program_attend.cuh", include_str!("kernels/program_attend.cuh")),
    ("program_linear.cuh", include_str!("kernels/program_linear.cuh")),
    ("gemv.cuh", include_str!("kernels/gemv.cuh")),
    ("mma.cuh", include_str!("kernels/mma.cuh")),
    ("tiles.cuh", include_str!("kernels/tiles.cuh")),
    ("wgmma.cuh", include_str!("kernels/wgmma.cuh")),
    ("attention_forward.cuh", include_str!("kernels/attention_forward.cuh")),
    ("attention_decode.cuh", include_str!("kernels/attention_decode.cuh")),
    ("attention_plain.cuh", include_str!("kernels/attention_plain.cuh")),
];

/// What runs kernels on a CPU.
const SHIM: (&str, &str) = ("shim.h", include_str!("shim/shim.h"));

/// Options of the GPU's compiler, but for the target.
pub(super) fn options<'a>() -> impl Iterator<Item = &'a str> {
    let lines = include_str!("kernels/nvrtc_options.txt").lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Name and text of every file, as they lie in the repository.
pub(super) fn texts() -> impl Iterator<Item = (&'static str, &'static str)> {
    FILES.into_iter().chain(HEADERS).chain([SHIM])
}

/// Hexadecimal SHA-256 of all files and of what else makes a difference.
pub(super) fn fingerprint(more: &[&str]) -> String {
    let mut hash = Sha256::new();
    for (name, text) in texts() {
        hash.update(format!("{name} {}\n{text}", text.len()));
    }
    for what in options().chain(more.iter().copied()) {
        hash.update(format!("{} {what}\n", what.len()));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Name and text of every file with kernels, the headers written out where they are included.
pub(super) fn units() -> impl Iterator<Item = (&'static str, String)> {
    FILES.into_iter().map(|(name, text)| {
        let mut out = String::new();
        include(&mut out, text, &mut Vec::new());
        (name, out)
    })
}

/// Appends `text`, each header at its first `#include`.
fn include(out: &mut String, text: &str, seen: &mut Vec<&'static str>) {
    for line in text.lines() {
        let name = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
        match HEADERS.iter().find(|(header, _)| Some(*header) == name) {
            None if line == "#pragma once" => {}
            None => {
                out.push_str(line);
                out.push('\n');
            }
            Some((header, text)) if !seen.contains(header) => {
                seen.push(header);
                include(out, text, seen);
            }
            Some(_) => {}
        }
    }
}
