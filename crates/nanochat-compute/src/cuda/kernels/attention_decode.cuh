// What decoding attends with: a lane's share of a key and value, sums that are weighed by the largest
// score so far, and how such sums are added up.
#pragma once
#include "attention_forward.cuh"

const int PAGE = 64;  // positions

const int DECODE_WARPS = 4;

// 16 bytes of a cache, as floats.
__device__ __forceinline__ void unpack(const Chunk& chunk, float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = float_of(chunk.words[i] << 16);
        x[2 * i + 1] = float_of(chunk.words[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ void unpack(const Chunk& chunk, float (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = float_of(chunk.words[i]);
}

// What a partial sum with the maximum `own` counts in one with the maximum `top` (both log2).
__device__ __forceinline__ float share(float own, float top) { return own == -INFINITY ? 0.0f : exp2_fast(own - top); }

// A head's sums over some keys: V of the channels, weighed by 2^(score - maximum), and the weights.
template <int V> struct Partial {
    float acc[V] = {};
    float maximum = -INFINITY, sum = 0.0f;

    // Takes in keys with these scores and values.
    template <int N> __device__ __forceinline__ void add(const float (&score)[N], const float (&value)[N][V]) {
        float top = maximum;
#pragma unroll
        for (int i = 0; i < N; i++) top = fmaxf(top, score[i]);
        rescale(top);
#pragma unroll
        for (int i = 0; i < N; i++) {
            float weight = share(score[i], top);
            sum += weight;
#pragma unroll
            for (int j = 0; j < V; j++) acc[j] += weight * value[i][j];
        }
    }
    // Takes in the sums of the lane `mask` away.
    __device__ __forceinline__ void add_lane(int mask) {
        float other = shfl_xor(maximum, mask), top = fmaxf(maximum, other), weight = share(other, top);
        float other_sum = shfl_xor(sum, mask);
        float other_acc[V];
#pragma unroll
        for (int j = 0; j < V; j++) other_acc[j] = shfl_xor(acc[j], mask);
        rescale(top);
        sum += weight * other_sum;
#pragma unroll
        for (int j = 0; j < V; j++) acc[j] += weight * other_acc[j];
    }
    __device__ __forceinline__ void rescale(float top) {
        float weight = share(maximum, top);
        maximum = top;
        sum *= weight;
#pragma unroll
        for (int j = 0; j < V; j++) acc[j] *= weight;
    }
};

// Adds up N partial sums, `stride` floats apart: the channels, then maximum and sum.
struct Total {
    float maximum = -INFINITY, sum = 0.0f, channel = 0.0f;
};
__device__ __forceinline__ Total add_partials(const float* partials, int n, i64 stride, int d, int channel) {
    const int AT_ONCE = 8;  // that are asked for together
    Total total;
    for (int first = 0; first < n; first += AT_ONCE) {
        float maximum[AT_ONCE], sum[AT_ONCE], own[AT_ONCE], top = total.maximum;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            bool there = first + i < n;
            const float* record = partials + (there ? first + i : 0) * stride;
            maximum[i] = there ? record[d] : -INFINITY;
            sum[i] = there ? record[d + 1] : 0.0f;
            own[i] = there ? record[channel] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) top = fmaxf(top, maximum[i]);
        float weight = share(total.maximum, top);
        total.maximum = top;
        total.sum *= weight;
        total.channel *= weight;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            weight = share(maximum[i], top);
            total.sum += weight * sum[i];
            total.channel += weight * own[i];
        }
    }
    return total;
}
