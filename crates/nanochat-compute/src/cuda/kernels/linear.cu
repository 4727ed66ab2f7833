// Products of a few rows with a weight: C = beta C + A Wᵀ for m <= 2, at the speed of reading W. More rows are
// faster as a product on tensor cores.
//
// One warp for each row of W (an output channel): a lane reads 8 bf16 at a time, its part of the m
// rows of A comes from the first-level cache. Grid: n warps. W is (n, k) with k a multiple of 8 and
// 16-byte rows.
#include "device.cuh"

template <int M, class T, class O> __device__ __forceinline__ void linear(
    O* c, const T* a, const bf16* w, int m, int n, int k, float beta) {
    int row = thread_index() / 32, lane = threadIdx.x % 32;
    if (row >= n) return;
    w += (i64)row * k;
    float sum[M];
    for (int i = 0; i < M; i++) sum[i] = 0.0f;
#pragma unroll 2
    for (int at = lane * 8; at < k; at += 256) {
        Eight16 v = *(const Eight16*)(w + at);
        for (int i = 0; i < M; i++) {
            if (i >= m) break;
            Floats<4> lo = Access<4>::get(a + (i64)i * k + at), hi = Access<4>::get(a + (i64)i * k + at + 4);
            for (int j = 0; j < 4; j++) sum[i] += lo.x[j] * to_float(v.x[j]) + hi.x[j] * to_float(v.x[j + 4]);
        }
    }
    for (int i = 0; i < M; i++) {
        if (i >= m) break;
        float s = warp_sum(sum[i]);
        O* to = c + (i64)i * n + row;
        if (lane == 0) put(to, beta == 0.0f ? s : beta * to_float(*to) + s);
    }
}

#define LINEAR(M, T, O, NAME) \
extern "C" __global__ void NAME(O* c, const T* a, const bf16* w, int m, int n, int k, float beta) { linear<M, T, O>(c, a, w, m, n, k, beta); } \
KERNELS(NAME)

LINEAR(1, bf16, bf16, linear1_bf16_bf16)
LINEAR(1, bf16, float, linear1_bf16_f32)
LINEAR(1, float, float, linear1_f32_f32)
LINEAR(2, bf16, bf16, linear2_bf16_bf16)
LINEAR(2, bf16, float, linear2_bf16_f32)
LINEAR(2, float, float, linear2_f32_f32)
