// A decode step of a few rows in few kernels: the embedding with smear, and linear layers with the norm
// before them and what is done to their results. Formulas: `ops/step.rs`. All streams are f32. Launched
// early.
#include "tiles.cuh"

// A block a row; shared: 128 bytes. x0 (m, c) = e + gate * last, last = e, with e the norm of the id's row.
template <class T> __device__ __forceinline__ void step_embed(
    float* x0, T* last, const float* table, const int* ids, const float* w, const float* lambda, int vocab, int c,
    int channels, float eps) {
    SHARED
    float* space = (float*)shared;
    wait_for_earlier();
    let_next_begin();
    int row = blockIdx.x, id = ids[row];
    bool there = id >= 0 && id < vocab;
    table += there ? (i64)id * c : 0;
    x0 += (i64)row * c;
    last += (i64)row * c;
    float square = 0.0f, dot = 0.0f;
    for (int at = threadIdx.x; at < c; at += blockDim.x) {
        float e = table[at];
        square += e * e;
        if (w && at < channels) dot += w[at] * e;
    }
    // An id outside the table has no row: what it makes is not a number, and is seen.
    float r = there ? 1.0f / sqrtf(block_sum(square, space) / c + eps) : NAN;
    float share = w ? *lambda * sigmoid(r * block_sum(dot, space)) : 0.0f;
    for (int at = threadIdx.x; at < c; at += blockDim.x) {
        float e = table[at] * r;
        x0[at] = w ? e + share * to_float(last[at]) : e;
        put(last + at, e);
    }
}

// Up to three weights that read the same rows, one below the other.
template <class W> struct Outputs {
    float* to[3];
    const W* w[3];
    int n[3];
};

// What the rows of x are before they are normalised: x, or fa x + fb y.
template <int V> struct Mixed {
    const float *x, *y;
    float fa, fb;
    float* to;  // where they are kept as well, by one warp of the launch
    int m, k;
    __device__ __forceinline__ Floats<V> operator()(int i, int at) const {
        // Rows past the last are the last one's copies.
        i64 from = (i64)min(i, m - 1) * k + at;
        Floats<V> own = Access<V>::get(x + from);
        if (y) {
            Floats<V> other = Access<V>::get(y + from);
#pragma unroll
            for (int j = 0; j < V; j++) own.x[j] = fa * own.x[j] + fb * other.x[j];
        }
        if (to) Access<V>::set(to + from, own);
        return own;
    }
    __device__ __forceinline__ float one(int i, int at) const {
        i64 from = (i64)i * k + at;
        return y ? fa * x[from] + fb * y[from] : x[from];
    }
};

struct StepGate {
    const float *table, *w;
    const int* ids;
    int vocab, hkv, d, channels;
    float scale;
};

enum After { NOTHING = 0, RELU2 = 1, SOFTCAP = 2 };

// out = after(norm(mixed x) Wᵀ), the last output plus gate times a row of a table where there is one.
// Grid: ceil(rows of all weights / (4 R)) blocks of 4 warps, R rows a warp.
template <int M, int R, int V, class W> __device__ __forceinline__ void step_linear(
    const Outputs<W>& out, Mixed<V> x, const float* a, const float* b, float sign, float eps, int after, float cap,
    const StepGate& gate) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, m = x.m, k = x.k;
    int first = (blockIdx.x * GEMV_WARPS + warp) * R, n01 = out.n[0] + out.n[1], n = n01 + out.n[2];
    const W* rows[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        int row = min(first + r, n - 1);
        bool zero = row < out.n[0], one = row < n01;
        const W* w = zero ? out.w[0] : one ? out.w[1] : out.w[2];
        rows[r] = w + (i64)(row - (zero ? 0 : one ? out.n[0] : n01)) * k;
    }
    x.fa = a ? *a : 1.0f;
    x.fb = b ? sign * *b : 0.0f;
    if (blockIdx.x != 0 || warp != 0) x.to = nullptr;
    // The one thing that a lane makes: row `own` of W with row i of x.
    int own = first + lane / M, i = lane % M;
    bool mine = lane < R * M && own < n && i < m;
    int which = own < out.n[0] ? 0 : own < n01 ? 1 : 2;
    int column = own - (which == 0 ? 0 : which == 1 ? out.n[0] : n01);
    bool gated = gate.table && own >= n01;
    float value = 0.0f;
    if (mine && gated) {
        int id = gate.ids[i];
        value = id >= 0 && id < gate.vocab ? gate.table[(i64)id * out.n[2] + column] : NAN;
    }
    float dot[R][M], square[M];
    gemv<M, R, V>(dot, square, rows, 0, k, x);
    float sum = own_sum(dot), r = 0.0f;
#pragma unroll
    for (int j = 0; j < M; j++) {
        float rstd = 1.0f / sqrtf(warp_sum(square[j]) / k + eps);
        if (i == j) r = rstd;
    }
    sum *= r;
    // With a gate R is 1: a warp has one head.
    if (R == 1 && gate.table && first >= n01 && first < n) {
        int head = (first - n01) / gate.d;
        for (int j = 0; j < m; j++) {
            float z = 0.0f;
            for (int at = lane; at < gate.channels; at += 32) z += gate.w[head * gate.channels + at] * x.one(j, at);
            z = warp_sum(z);
            if (i == j) sum += gate.scale * sigmoid(r * z) * value;
        }
    }
    if (!mine) return;
    if (after == RELU2) sum = sum > 0.0f ? sum * sum : sum != sum ? sum : 0.0f;
    if (after == SOFTCAP) sum = cap * tanhf(sum / cap);
    float* to = which == 0 ? out.to[0] : which == 1 ? out.to[1] : out.to[2];
    int width = which == 0 ? out.n[0] : which == 1 ? out.n[1] : out.n[2];
    to[(i64)i * width + column] = sum;
}

// The same on tensor cores, for a weight in bf16 and k a multiple of 8. Grid: ceil(rows of all weights / 16)
// blocks of 4, 8 or 16 warps; shared: what TileSpace lays out.
__device__ __forceinline__ void step_linear_tiles(
    const Outputs<bf16>& out, Mixed<4> x, const float* a, const float* b, float sign, float eps, int after, float cap,
    const StepGate& gate) {
    SHARED
    const int T = 2, ROWS = 8 * T;
    int m = x.m, k = x.k;
    TileSpace space(shared, m, k);
    int first = blockIdx.x * ROWS, n01 = out.n[0] + out.n[1], n = n01 + out.n[2];
    x.fa = a ? *a : 1.0f;
    x.fb = b ? sign * *b : 0.0f;
    if (blockIdx.x != 0) x.to = nullptr;
    // The one thing that a thread makes: row `own` of W with row i of x.
    int own = first + threadIdx.x % ROWS, i = threadIdx.x / ROWS;
    bool mine = own < n && i < m;
    int which = own < out.n[0] ? 0 : own < n01 ? 1 : 2;
    int column = own - (which == 0 ? 0 : which == 1 ? out.n[0] : n01);
    bool gated = mine && gate.table && own >= n01;
    float value = 0.0f;
    if (gated) {
        int id = gate.ids[i];
        value = id >= 0 && id < gate.vocab ? gate.table[(i64)id * out.n[2] + column] : NAN;
    }
    auto weights = [&](int r) {
        int row = min(first + r, n - 1);
        bool zero = row < out.n[0], one = row < n01;
        const bf16* w = zero ? out.w[0] : one ? out.w[1] : out.w[2];
        return w + (i64)(row - (zero ? 0 : one ? out.n[0] : n01)) * k;
    };
    tiles<T>(space, m, k, weights, x, [] {});
    if (!mine) return;
    float r = 1.0f / sqrtf(square_of(space, m, i) / k + eps);
    float sum = r * tile_sum<T>(space, threadIdx.x % ROWS, i);
    if (gated) {
        const float* w = gate.w + column / gate.d * gate.channels;
        float z = 0.0f;
        for (int at = 0; at < gate.channels; at++) z += w[at] * space.get(i, at);
        sum += gate.scale * sigmoid(r * z) * value;
    }
    if (after == RELU2) sum = sum > 0.0f ? sum * sum : sum != sum ? sum : 0.0f;
    if (after == SOFTCAP) sum = cap * tanhf(sum / cap);
    float* to = which == 0 ? out.to[0] : which == 1 ? out.to[1] : out.to[2];
    int width = which == 0 ? out.n[0] : which == 1 ? out.n[1] : out.n[2];
    to[(i64)i * width + column] = sum;
}

#define STEP_EMBED(T, NAME) \
extern "C" __global__ void __launch_bounds__(256) NAME(float* x0, T* last, const float* __restrict__ table, const int* ids, const float* __restrict__ w, const float* __restrict__ lambda, int vocab, int c, int channels, float eps) { step_embed<T>(x0, last, table, ids, w, lambda, vocab, c, channels, eps); } \
KERNELS(NAME)
STEP_EMBED(float, step_embed_f32)
STEP_EMBED(bf16, step_embed_bf16)

#define STEP_LINEAR(M, R, V, W, NAME) \
extern "C" __global__ void __launch_bounds__(128) NAME( \
    float* to0, float* to1, float* to2, const W* __restrict__ w0, const W* __restrict__ w1, const W* __restrict__ w2, \
    int n0, int n1, int n2, const float* x, const float* y, const float* a, const float* b, float sign, float* mixed, \
    int m, int k, float eps, int after, float cap, const float* __restrict__ table, const int* ids, \
    const float* __restrict__ gate, int vocab, int d, int channels, float scale) { \
    step_linear<M, R, V, W>({{to0, to1, to2}, {w0, w1, w2}, {n0, n1, n2}}, {x, y, 0.0f, 0.0f, mixed, m, k}, a, b, \
        sign, eps, after, cap, {table, gate, ids, vocab, d > 0 ? n2 / d : 0, d, channels, scale}); \
} \
KERNELS(NAME)
STEP_LINEAR(1, 1, 8, bf16, step_linear_bf16x8_1)
STEP_LINEAR(2, 1, 8, bf16, step_linear_bf16x8_2)
STEP_LINEAR(4, 1, 8, bf16, step_linear_bf16x8_4)
STEP_LINEAR(8, 1, 8, bf16, step_linear_bf16x8_8)
STEP_LINEAR(1, 4, 8, bf16, step_linear_wide_bf16x8_1)
STEP_LINEAR(2, 4, 8, bf16, step_linear_wide_bf16x8_2)
STEP_LINEAR(4, 4, 8, bf16, step_linear_wide_bf16x8_4)
STEP_LINEAR(8, 4, 8, bf16, step_linear_wide_bf16x8_8)
STEP_LINEAR(8, 1, 1, bf16, step_linear_bf16x1_8)
STEP_LINEAR(8, 1, 1, float, step_linear_f32x1_8)

extern "C" __global__ void __launch_bounds__(512) step_linear_tiles_bf16(
    float* to0, float* to1, float* to2, const bf16* __restrict__ w0, const bf16* __restrict__ w1,
    const bf16* __restrict__ w2, int n0, int n1, int n2, const float* x, const float* y, const float* a, const float* b,
    float sign, float* mixed, int m, int k, float eps, int after, float cap, const float* __restrict__ table,
    const int* ids, const float* __restrict__ gate, int vocab, int d, int channels, float scale) {
    step_linear_tiles({{to0, to1, to2}, {w0, w1, w2}, {n0, n1, n2}}, {x, y, 0.0f, 0.0f, mixed, m, k}, a, b, sign, eps,
        after, cap, {table, gate, ids, vocab, d > 0 ? n2 / d : 0, d, channels, scale});
}
KERNELS(step_linear_tiles_bf16)
