// Products of a few rows with a weight: C = beta C + A Wᵀ for m <= 8, at the speed of reading W. More rows
// are faster as a product on tensor cores.
//
// `parts` warps (1, 2 or 4) share a row of W, an output channel, and add up in order: weights of few rows
// are asked for by as many warps as those of many. Grid: ceil(n parts / 4) blocks of 4 warps; shared: 128
// bytes. W is (n, k) in bf16 with k a multiple of 8 and 16-byte rows; so are the rows of A. Launched early.
#include "tiles.cuh"

template <int M, class T, class O> __device__ __forceinline__ void linear(
    O* c, const T* a, const bf16* w, int m, int n, int k, float beta, int parts) {
    SHARED
    float* space = (float*)shared;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % parts;
    int row = (blockIdx.x * GEMV_WARPS + warp) / parts;
    int each = (k / 8 + parts - 1) / parts * 8;
    // Warps past the last row do as it does, and write nothing.
    const bf16* const rows[1] = {w + (i64)min(row, n - 1) * k};
    float dot[1][M], square[M];
    gemv<M, 1, 8>(dot, square, rows, part * each, min(part * each + each, k), [&](int i, int at) {
        return Access<8>::get(a + (i64)(M == 1 ? 0 : min(i, m - 1)) * k + at);
    });
    float sum = own_sum(dot);
    if (parts > 1) {
        if (lane < M) space[warp * M + lane] = sum;
        __syncthreads();
        for (int other = 1; other < parts; other++) {
            if (part == 0 && lane < M) sum += space[(warp + other) * M + lane];
        }
    }
    if (part != 0 || row >= n || lane >= m) return;
    O* to = c + (i64)lane * n + row;
    put(to, beta == 0.0f ? sum : beta * to_float(*to) + sum);
}

#define LINEAR(M, T, O, NAME) \
extern "C" __global__ void __launch_bounds__(128) NAME(O* c, const T* a, const bf16* __restrict__ w, int m, int n, int k, float beta, int parts) { linear<M, T, O>(c, a, w, m, n, k, beta, parts); } \
KERNELS(NAME)
#define LINEARS(T, O, TYPES) \
LINEAR(1, T, O, linear1_##TYPES) \
LINEAR(2, T, O, linear2_##TYPES) \
LINEAR(4, T, O, linear4_##TYPES) \
LINEAR(8, T, O, linear8_##TYPES)

LINEARS(bf16, bf16, bf16_bf16)
LINEARS(bf16, float, bf16_f32)
LINEARS(float, float, f32_f32)

// The same of rows in f32 on tensor cores: rows are two bf16 each, within 2^-17 of them. Grid: ceil(n / 8)
// blocks of 4, 8 or 16 warps; shared: what TileSpace lays out.
extern "C" __global__ void __launch_bounds__(512) linear_tiles_f32(
    float* c, const float* a, const bf16* __restrict__ w, int m, int n, int k, float beta) {
    SHARED
    TileSpace space(shared, m, k);
    int first = blockIdx.x * 8, own = first + threadIdx.x % 8, i = threadIdx.x / 8;
    bool mine = own < n && i < m;
    float* to = c + (mine ? (i64)i * n + own : 0);
    float before = 0.0f;
    auto weights = [&](int r) { return w + (i64)min(first + r, n - 1) * k; };
    auto rows = [&](int row, int at) { return Access<4>::get(a + (i64)row * k + at); };
    tiles<1>(space, m, k, weights, rows, [&] {
        if (mine && beta != 0.0f) before = beta * *to;
    });
    if (mine) *to = before + tile_sum<1>(space, threadIdx.x % 8, i);
}
KERNELS(linear_tiles_f32)
