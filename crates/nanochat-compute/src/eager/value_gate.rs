//! `v + gate.unsqueeze(-1) * ve`. Reference: `ops/value_gate.rs`.

use std::iter::repeat_n;

use super::matmul::narrow;
use super::passes::{
    Fresh, add_, div, mul_slices, rows, scale, scale_rows, sigmoid, sigmoid_backward, sum_rows,
};
use crate::cpu::Cpu;
use crate::cpu::gemm::{Gemm, Layout};
use crate::ops::ValueGate;
use crate::reference::HostKernels;

/// `embedding`, `mm` of the first channels, `sigmoid` and `3 *` (N, Hkv), `gate * ve`, `v +`.
#[allow(clippy::too_many_arguments)]
pub(super) fn value_gate(
    cpu: &Cpu,
    v: &mut [f32],
    gate: &mut [f32],
    table: &[f32],
    ids: &[i32],
    y: &[f32],
    w: &[f32],
    s: &ValueGate,
) {
    let kv = s.hkv * s.d;
    let values = rows(cpu, Fresh, ids.len(), kv, |n, out| {
        out.extend_from_slice(&table[ids[n] as usize * kv..][..kv]);
    });
    let linear = Gemm { lda: s.c, ..Gemm::new(Layout::Nt, ids.len(), s.hkv, s.channels) };
    let opened = sigmoid(cpu, Fresh, &narrow(cpu, linear, y, w));
    scale(cpu, &mut *gate, &opened, s.scale);
    let gated = scale_rows(cpu, Fresh, &values, gate, s.d);
    drop(values);
    add_(cpu, v, &gated, 1.0);
}

/// The backward of the product (`mul` by the gate; `mul` by ve and sums by heads), of `3 *`, of
/// `sigmoid`, of `mm` and its slice (`zeros`, and a copy into the channels), and of `embedding`.
///
/// Autograd has kept ve; here it is read from the table, row by row, in the pass that needs it.
#[allow(clippy::too_many_arguments)]
pub(super) fn value_gate_backward(
    cpu: &Cpu,
    dtable: &mut [f32],
    dw: &mut [f32],
    dy: &mut [f32],
    dv: &[f32],
    table: &[f32],
    ids: &[i32],
    y: &[f32],
    w: &[f32],
    gate: &[f32],
    s: &ValueGate,
) {
    let (n, kv) = (ids.len(), s.hkv * s.d);
    let of_values = scale_rows(cpu, Fresh, dv, gate, s.d);
    let of_gate = rows(cpu, Fresh, n, kv, |n, out| {
        let values = &table[ids[n] as usize * kv..][..kv];
        mul_slices(&cpu.kernels, out, &dv[n * kv..][..kv], values);
    });
    let sums = sum_rows(cpu, Fresh, &of_gate, s.d, 1.0);
    drop(of_gate);
    let opened = div(cpu, Fresh, gate, s.scale);
    let of_linear = sigmoid_backward(cpu, Fresh, &scale(cpu, Fresh, &sums, s.scale), &opened);
    let of_w = Gemm { ldb: s.c, ..Gemm::new(Layout::Tn, s.hkv, s.channels, n) };
    add_(cpu, dw, &narrow(cpu, of_w, &of_linear, y), 1.0);
    let of_channels = Gemm::new(Layout::Nn, n, s.channels, s.hkv);
    let of_channels = narrow(cpu, of_channels, &of_linear, w);
    let of_y = rows(cpu, Fresh, n, s.c, |n, out| {
        let from = n * s.channels;
        out.extend_from_slice(&of_channels[from..from + s.channels]);
        out.extend(repeat_n(0.0, s.c - s.channels));
    });
    add_(cpu, dy, &of_y, 1.0);
    HostKernels::embedding_backward(cpu, dtable, &of_values, ids, kv);
}
