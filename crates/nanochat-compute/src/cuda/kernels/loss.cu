// Softcap and cross entropy of rows of logits, in place. Formula: `ops/loss.rs`.
//
// Grid: one block a row; shared: 128 bytes. Three walks over the row (largest, sum, gradient): a row of
// 32,768 bf16 is 64 KiB and stays in the second-level cache between them.
#include "device.cuh"

// After it the row holds softcapped logits (grad 0) or gradients times `scale` and the row's weight (grad 1).
// No weights: each is 1.
template <class T, int V> __device__ __forceinline__ void cross_entropy(
    float* losses, T* logits, const int* targets, const float* weights, int vocab, float cap, int grad, float scale) {
    SHARED
    float* space = (float*)shared;
    i64 row = blockIdx.x;
    int target = targets[row];
    if (weights) scale *= weights[row];
    T* z = logits + row * vocab;
    if (target < 0) {
        Floats<V> zero;
        for (int i = 0; i < V; i++) zero.x[i] = 0.0f;
        for (int at = threadIdx.x * V; at < vocab; at += blockDim.x * V) Access<V>::set(z + at, zero);
        if (threadIdx.x == 0) losses[row] = 0.0f;
        return;
    }
    float largest = -INFINITY, inverse = 1.0f / cap;
    for (int at = threadIdx.x * V; at < vocab; at += blockDim.x * V) {
        Floats<V> v = Access<V>::get(z + at);
        for (int i = 0; i < V; i++) largest = fmaxf(largest, v.x[i]);
    }
    // Read before the barrier behind which the row is overwritten. A target outside the vocabulary has
    // no logit: its loss is not a number, and is seen.
    float hit = target < vocab ? cap * tanhf(to_float(z[target]) * inverse) : NAN;
    largest = cap * tanhf(block_max(largest, space) * inverse);
    float sum = 0.0f;
    for (int at = threadIdx.x * V; at < vocab; at += blockDim.x * V) {
        Floats<V> v = Access<V>::get(z + at);
        for (int i = 0; i < V; i++) {
            float s = cap * tanh_fast(v.x[i] * inverse);
            sum += exp2_fast((s - largest) * 1.4426950408889634f);
            v.x[i] = s;
        }
        if (!grad) Access<V>::set(z + at, v);
    }
    float lse = largest + logf(block_sum(sum, space));
    if (threadIdx.x == 0) losses[row] = lse - hit;
    if (!grad) return;
    for (int at = threadIdx.x * V; at < vocab; at += blockDim.x * V) {
        Floats<V> v = Access<V>::get(z + at);
        for (int i = 0; i < V; i++) {
            float t = tanh_fast(v.x[i] * inverse);
            float p = exp2_fast((cap * t - lse) * 1.4426950408889634f);
            if (at + i == target) p -= 1.0f;
            v.x[i] = scale * p * (1.0f - t * t);
        }
        Access<V>::set(z + at, v);
    }
}

// Gradients of a row of bf16 that fits into shared memory: read once, written once. With
// r = 1 / (1 + e^(2 z / cap)) the softcapped logit is cap - 2 cap r, so exp(s - cap) = exp(-2 cap r), which
// needs no largest, and the softcap's slope is 4 r (1 - r). `vocab` is a multiple of 8, cap at most 30.
// Grid: one block a row; shared: 128 + 2 vocab bytes.
extern "C" __global__ void __launch_bounds__(512, 3) cross_entropy_grad_held(
    float* losses, bf16* logits, const int* targets, const float* weights, int vocab, float cap, float scale) {
    SHARED
    float* space = (float*)shared;
    bf16* held = (bf16*)(shared + 128);
    i64 row = blockIdx.x;
    int target = targets[row];
    if (weights) scale *= weights[row];
    bf16* z = logits + row * vocab;
    if (target < 0) {
        Eight16 zero;
        for (int i = 0; i < 8; i++) zero.x[i] = bf16{0};
        for (int at = threadIdx.x * 8; at < vocab; at += blockDim.x * 8) *(Eight16*)(z + at) = zero;
        if (threadIdx.x == 0) losses[row] = 0.0f;
        return;
    }
    float hit = target < vocab ? to_float(z[target]) : NAN;
    const float LOG2E = 1.4426950408889634f;
    float bend = 2.0f * LOG2E / cap, fall = -2.0f * cap * LOG2E, sum = 0.0f;
    for (int at = threadIdx.x * 8; at < vocab; at += blockDim.x * 8) {
        Eight16 v = *(const Eight16*)(z + at);
        *(Eight16*)(held + at) = v;
        for (int i = 0; i < 8; i++) {
            float r = reciprocal_fast(1.0f + exp2_fast(fminf(to_float(v.x[i]) * bend, 126.0f)));
            sum += exp2_fast(fall * r);
        }
    }
    sum = block_sum(sum, space);
    if (threadIdx.x == 0) losses[row] = cap + logf(sum) - cap * tanhf(hit / cap);
    float share = 4.0f * scale * reciprocal_fast(sum);
    for (int at = threadIdx.x * 8; at < vocab; at += blockDim.x * 8) {
        Eight16 v = *(const Eight16*)(held + at);
        for (int i = 0; i < 8; i++) {
            float r = reciprocal_fast(1.0f + exp2_fast(fminf(to_float(v.x[i]) * bend, 126.0f)));
            float p = share * exp2_fast(fall * r);
            if (at + i == target) p -= 4.0f * scale;
            v.x[i] = to_bf16(p * (r - r * r));
        }
        *(Eight16*)(z + at) = v;
    }
}
KERNELS(cross_entropy_grad_held)

// A number of a row and where it stands: the larger one, the earlier of equals.
struct Best {
    float value;
    int place;
    __device__ __forceinline__ void take(float other, int there) {
        if (other > value || (other == value && there < place)) value = other, place = there;
    }
};
__device__ __forceinline__ Best block_best(Best best, unsigned char* shared) {
    float* values = (float*)shared;
    int* places = (int*)(shared + 128);
    for (int mask = 16; mask > 0; mask >>= 1) best.take(shfl_xor(best.value, mask), shfl_xor(best.place, mask));
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        values[threadIdx.x / 32] = best.value;
        places[threadIdx.x / 32] = best.place;
    }
    __syncthreads();
    for (int i = 0; i < blockDim.x / 32; i++) best.take(values[i], places[i]);
    return best;
}

// out[row]: where the largest of the row stands first. Grid: (parts, rows); parts share a row, and the last
// of them that is done looks through what they found: values and places (rows, parts); `arrived` (rows) is 0
// before and after. Shared: 272 bytes. Launched early.
extern "C" __global__ void argmax(int* out, const float* x, int vocab, float* values, int* places, int* arrived) {
    SHARED
    int* last = (int*)(shared + 256);
    int row = blockIdx.y, parts = gridDim.x;
    wait_for_earlier();
    let_next_begin();
    x += (i64)row * vocab;
    values += (i64)row * parts;
    places += (i64)row * parts;
    Best best = {-INFINITY, vocab};
    for (int at = blockIdx.x * blockDim.x + threadIdx.x; at < vocab; at += parts * blockDim.x) best.take(x[at], at);
    best = block_best(best, shared);
    if (parts > 1) {
        if (threadIdx.x == 0) {
            values[blockIdx.x] = best.value;
            places[blockIdx.x] = best.place;
            __threadfence();
            *last = atomicAdd(arrived + row, 1) == parts - 1;
        }
        __syncthreads();
        if (!*last) return;
        __threadfence();
        best = {-INFINITY, vocab};
        for (int i = threadIdx.x; i < parts; i += blockDim.x) best.take(values[i], places[i]);
        best = block_best(best, shared);
        if (threadIdx.x == 0) arrived[row] = 0;
    }
    if (threadIdx.x == 0) out[row] = best.place < vocab ? best.place : 0;
}
KERNELS(argmax)

#define LOSS(T, V, SUFFIX) \
extern "C" __global__ void cross_entropy_##SUFFIX(float* losses, T* logits, const int* targets, const float* weights, int vocab, float cap, int grad, float scale) { cross_entropy<T, V>(losses, logits, targets, weights, vocab, cap, grad, scale); } \
KERNELS(cross_entropy_##SUFFIX)

LOSS(float, 1, f32x1)
LOSS(float, 4, f32x4)
LOSS(bf16, 1, bf16x1)
LOSS(bf16, 4, bf16x4)
