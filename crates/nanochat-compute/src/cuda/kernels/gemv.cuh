// A few rows times a weight at the speed of reading the weight: what a warp does for R of its rows.
//
// W is (n, k). A lane holds V weights of a piece (16 bytes of bf16 where V is 8), a warp PIECES pieces of
// each of its R rows, asked for before the kernel before this one has ended: weights never change. The
// m <= M rows that multiply them come from the first-level cache.
#pragma once
#include "device.cuh"

const int GEMV_WARPS = 4;  // of a block
const int PIECES = 4;      // that a warp asks for at a time: 1,024 weights of a row where V is 8

// V weights of a row, as they lie.
template <class W, int V> struct Piece;
template <class W> struct Piece<W, 1> {
    W x;
    __device__ __forceinline__ void load(const W* p) { x = *p; }
    __device__ __forceinline__ float get(int) const { return to_float(x); }
};
template <> struct Piece<bf16, 8> {
    unsigned words[4];
    // Once and by nobody else: past the first-level cache.
    __device__ __forceinline__ void load(const bf16* p) {
#ifdef NANOCHAT_SHIM
        memcpy(words, p, 16);
#else
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "l"(p));
#endif
    }
    __device__ __forceinline__ float get(int i) const {
        return float_of(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    }
};

// Columns `at`, `at + 32 V`, .. of the warp's rows, as far as `end`.
template <int R, int V, class W>
__device__ __forceinline__ void load_pieces(Piece<W, V> (&pieces)[PIECES][R], const W* const (&w)[R], int at, int end) {
#pragma unroll
    for (int p = 0; p < PIECES; p++, at += 32 * V) {
#pragma unroll
        for (int r = 0; r < R; r++) {
            if (at < end) pieces[p][r].load(w[r] + at);
        }
    }
}

// dot[r][i] = sum over the columns begin .. end of w[r][column] x(i, column), and square[i] that of
// x(i, column)^2, both of this lane's columns only. `x(i, column)`: V columns of row i as floats. The
// kernel before this one is waited for in here.
template <int M, int R, int V, class W, class X>
__device__ __forceinline__ void gemv(float (&dot)[R][M], float (&square)[M], const W* const (&w)[R], int begin, int end,
                                     X x) {
    const int STRIDE = PIECES * 32 * V;
    Piece<W, V> pieces[PIECES][R];
    int at = begin + (int)(threadIdx.x % 32) * V;
    let_next_begin();
    load_pieces(pieces, w, at, end);
    wait_for_earlier();
#pragma unroll
    for (int i = 0; i < M; i++) {
        square[i] = 0.0f;
#pragma unroll
        for (int r = 0; r < R; r++) dot[r][i] = 0.0f;
    }
    for (int first = begin; first < end; first += STRIDE, at += STRIDE) {
        if (first > begin) load_pieces(pieces, w, at, end);
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            int column = at + p * 32 * V;
            if (column >= end) break;
#pragma unroll
            for (int i = 0; i < M; i++) {
                Floats<V> own = x(i, column);
#pragma unroll
                for (int j = 0; j < V; j++) {
                    square[i] += own.x[j] * own.x[j];
#pragma unroll
                    for (int r = 0; r < R; r++) dot[r][i] += own.x[j] * pieces[p][r].get(j);
                }
            }
        }
    }
}

// Sums over the warp, of which lane r M + i keeps that of dot[r][i].
template <int M, int R> __device__ __forceinline__ float own_sum(const float (&dot)[R][M]) {
    float own = 0.0f;
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int i = 0; i < M; i++) {
            float sum = warp_sum(dot[r][i]);
            if ((int)(threadIdx.x % 32) == r * M + i) own = sum;
        }
    }
    return own;
}
