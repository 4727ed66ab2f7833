// AdamW, and Muon's parts between its matrix products. Formulas: `ops/adamw.rs`, `ops/muon.rs`.
#include "device.cuh"

extern "C" __global__ void adamw(
    float* p, float* m, float* v, const float* g, i64 n, float keep, float take1, float take2, float step,
    float unbias2, float eps) {
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        float grad = g[i], mi = m[i], vi = v[i];
        mi += (grad - mi) * take1;
        vi += (grad * grad - vi) * take2;
        m[i] = mi;
        v[i] = vi;
        p[i] = p[i] * keep - step * mi / (sqrtf(vi / unbias2) + eps);
    }
}

// Muon takes several matrices of one shape together: blockIdx.y is the matrix. What lies in scratch (x,
// squares, factor) is that of all matrices, one after the other; the rest is found by its address.
struct MuonMatrix {
    float* p;
    float* buf;
    float* second;
    const float* g;
};

// buf = lerp(buf, g, take), x = lerp(g, buf, mu); squares (m): the row's sum of x^2. Grid: (m, matrices).
extern "C" __global__ void muon_momentum(
    float* x, const MuonMatrix* all, float* squares, int m, int n, float take, float mu) {
    SHARED
    const MuonMatrix own = all[blockIdx.y];
    i64 row = (i64)blockIdx.x * n;
    x += (i64)blockIdx.y * m * n;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float grad = own.g[row + i], b = own.buf[row + i];
        b += (grad - b) * take;
        own.buf[row + i] = b;
        float u = grad + (b - grad) * mu;
        x[row + i] = u;
        sum += u * u;
    }
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x == 0) squares[blockIdx.y * m + blockIdx.x] = sum;
}

// From the rows' sums of squares, the factor of each row: to equal norms, then 1 / (1.01 |X| + 1e-6).
// Grid: (1, matrices).
extern "C" __global__ void muon_row_factors(float* factor, const float* squares, int m) {
    SHARED
    float* space = (float*)shared;
    factor += blockIdx.y * m;
    squares += blockIdx.y * m;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < m; i += blockDim.x) sum += squares[i];
    float target = sqrtf(block_sum(sum, space)) / sqrtf((float)m);
    sum = 0.0f;
    for (int i = threadIdx.x; i < m; i += blockDim.x) {
        float norm = sqrtf(squares[i]), f = target / fmaxf(norm, 1e-6f);
        factor[i] = f;
        sum += norm * f * norm * f;
    }
    float scale = 1.0f / (1.01f * sqrtf(block_sum(sum, space)) + 1e-6f);
    for (int i = threadIdx.x; i < m; i += blockDim.x) factor[i] *= scale;
}

// out[i, j] = x[i, j] factor[i]; out may be x. Grid: (m, matrices).
template <class T> __device__ __forceinline__ void scale_rows(T* out, const float* x, const float* factor, int m, int n) {
    i64 row = ((i64)blockIdx.y * m + blockIdx.x) * n;
    float f = factor[blockIdx.y * m + blockIdx.x];
    for (int i = threadIdx.x; i < n; i += blockDim.x) put(out + row + i, x[row + i] * f);
}
extern "C" __global__ void scale_rows_f32(float* out, const float* x, const float* factor, int m, int n) { scale_rows<float>(out, x, factor, m, n); }
extern "C" __global__ void scale_rows_bf16(bf16* out, const float* x, const float* factor, int m, int n) { scale_rows<bf16>(out, x, factor, m, n); }

// squares (m): sum of squares of each row. Grid: (m, matrices).
template <class T> __device__ __forceinline__ void row_squares(float* squares, const T* x, int m, int n) {
    SHARED
    i64 row = ((i64)blockIdx.y * m + blockIdx.x) * n;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float v = to_float(x[row + i]);
        sum += v * v;
    }
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x == 0) squares[blockIdx.y * m + blockIdx.x] = sum;
}
extern "C" __global__ void row_squares_f32(float* squares, const float* x, int m, int n) { row_squares<float>(squares, x, m, n); }
extern "C" __global__ void row_squares_bf16(float* squares, const bf16* x, int m, int n) { row_squares<bf16>(squares, x, m, n); }

// squares (n): sum of squares of each column. A block of 256 takes 32 columns with 8 walks down them;
// grid: (n / 32, matrices), shared: 1,024 bytes.
template <class T> __device__ __forceinline__ void column_squares(float* squares, const T* x, int m, int n) {
    SHARED
    float* sums = (float*)shared;
    x += (i64)blockIdx.y * m * n;
    int column = blockIdx.x * 32 + threadIdx.x % 32, walk = threadIdx.x / 32;
    float sum = 0.0f;
    if (column < n) {
        for (int i = walk; i < m; i += 8) {
            float v = to_float(x[(i64)i * n + column]);
            sum += v * v;
        }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (walk == 0 && column < n) {
        sum = 0.0f;
        for (int i = 0; i < 8; i++) sum += sums[i * 32 + threadIdx.x];
        squares[blockIdx.y * n + column] = sum;
    }
}
extern "C" __global__ void column_squares_f32(float* squares, const float* x, int m, int n) { column_squares<float>(squares, x, m, n); }
extern "C" __global__ void column_squares_bf16(float* squares, const bf16* x, int m, int n) { column_squares<bf16>(squares, x, m, n); }

// Rescaling to the norm sqrt(least) and variance reduction, as one factor for each row or column:
// `size` elements lie behind each of the `len` sums. Grid: (1, matrices).
extern "C" __global__ void muon_variance(
    float* factor, const MuonMatrix* all, const float* squares, int len, float size, float least, float take) {
    SHARED
    float* space = (float*)shared;
    float* second = all[blockIdx.y].second;
    factor += blockIdx.y * len;
    squares += blockIdx.y * len;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < len; i += blockDim.x) sum += squares[i];
    float norm = sqrtf(block_sum(sum, space)), scale = sqrtf(least) / fmaxf(norm, 1e-6f);
    float before = norm * scale, after = 0.0f;
    for (int i = threadIdx.x; i < len; i += blockDim.x) {
        float mean = squares[i] * scale * scale / size, s = second[i];
        s += (mean - s) * take;
        second[i] = s;
        s = fmaxf(s, 1e-10f);
        after += mean * size / s;
        factor[i] = 1.0f / sqrtf(s);
    }
    float keep = scale * before / fmaxf(sqrtf(block_sum(after, space)), 1e-10f);
    for (int i = threadIdx.x; i < len; i += blockDim.x) factor[i] *= keep;
}

// p -= lr X + lr wd p [X p >= 0], X = x times the factor of its row or column. Grid: (m, matrices).
template <class T> __device__ __forceinline__ void muon_update(
    const MuonMatrix* all, const T* x, const float* factor, int m, int n, int by_row, float lr, float wd) {
    float* p = all[blockIdx.y].p;
    i64 row = (i64)blockIdx.x * n;
    x += (i64)blockIdx.y * m * n;
    factor += blockIdx.y * (by_row ? m : n);
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float u = to_float(x[row + i]) * factor[by_row ? blockIdx.x : i], w = p[row + i];
        float decay = u * w >= 0.0f ? lr * wd * w : 0.0f;
        p[row + i] = w - (lr * u + decay);
    }
}
extern "C" __global__ void muon_update_f32(const MuonMatrix* all, const float* x, const float* factor, int m, int n, int by_row, float lr, float wd) { muon_update<float>(all, x, factor, m, n, by_row, lr, wd); }
extern "C" __global__ void muon_update_bf16(const MuonMatrix* all, const bf16* x, const float* factor, int m, int n, int by_row, float lr, float wd) { muon_update<bf16>(all, x, factor, m, n, by_row, lr, wd); }

KERNELS(adamw, muon_momentum, muon_row_factors, scale_rows_f32, scale_rows_bf16, row_squares_f32, row_squares_bf16, column_squares_f32, column_squares_bf16, muon_variance, muon_update_f32, muon_update_bf16)
