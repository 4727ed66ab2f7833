// Attention for any head of up to 256 channels, f32 or bf16: a warp for a query (or a key), in f32.
//
// A step takes 32 keys (or queries): each lane has the score of one of them. For sums over them,
// each lane has every 32nd channel.
#pragma once
#include "device.cuh"

const int MOST_CHANNELS = 8;  // of a lane

struct PlainShape {
    int b, t, h, hkv, d, window;
    float scale;
};

template <class A, class B> __device__ __forceinline__ float dot(const A* a, const B* b, int d) {
    float sum = 0.0f;
    for (int i = 0; i < d; i++) sum += to_float(a[i]) * to_float(b[i]);
    return sum;
}

// The warp's channels: lane + 32 i.
struct Channels {
    float x[MOST_CHANNELS];
    __device__ __forceinline__ void scale(float factor) {
#pragma unroll
        for (int i = 0; i < MOST_CHANNELS; i++) x[i] *= factor;
    }
    template <class T> __device__ __forceinline__ void add(float weight, const T* row, int d) {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < MOST_CHANNELS; i++) {
            if (lane + 32 * i < d) x[i] += weight * to_float(row[lane + 32 * i]);
        }
    }
    template <class T> __device__ __forceinline__ void store(T* row, int d) const {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < MOST_CHANNELS; i++) {
            if (lane + 32 * i < d) put(row + lane + 32 * i, x[i]);
        }
    }
};

// Softmax as it goes along: channels so far, weighed by exp(score - maximum), and the sum of weights.
struct Attended {
    Channels acc = {};
    float maximum = -INFINITY, sum = 0.0f;

    // Takes in `count` of 32 rows, lane i's score belonging to the row i; `row_of(i)` points to the row.
    template <class RowOf> __device__ __forceinline__ void add(float score, int count, int d, RowOf row_of) {
        int lane = threadIdx.x % 32;
        if (lane >= count) score = -INFINITY;
        float top = fmaxf(maximum, warp_max(score));
        float rescale = expf(maximum - top), weight = expf(score - top);
        maximum = top;
        sum = sum * rescale + warp_sum(weight);
        acc.scale(rescale);
        for (int i = 0; i < count; i++) acc.add(shfl(weight, i), row_of(i), d);
    }
};

template <class T>
__device__ __forceinline__ void plain_forward(T* out, float* lse, const T* q, const T* k, const T* v, PlainShape s) {
    int lane = threadIdx.x % 32;
    i64 at = (i64)blockIdx.x * 8 + threadIdx.x / 32;  // (b, t, h)
    if (at >= (i64)s.b * s.t * s.h) return;
    int head = at % s.h, t = at / s.h % s.t, kv_head = head / (s.h / s.hkv);
    i64 row = at / s.h - t;
    auto of = [&](const T* x, int key) { return x + ((row + key) * s.hkv + kv_head) * s.d; };
    Attended sum;
    for (int key = max(t - s.window, 0); key <= t; key += 32) {
        int count = min(t + 1 - key, 32);
        float score = lane < count ? s.scale * dot(q + at * s.d, of(k, key + lane), s.d) : 0.0f;
        sum.add(score, count, s.d, [&](int i) { return of(v, key + i); });
    }
    sum.acc.scale(1.0f / sum.sum);
    sum.acc.store(out + at * s.d, s.d);
    if (lane == 0) lse[at] = sum.maximum + logf(sum.sum);
}

template <class T>
__device__ __forceinline__ void plain_backward_q(T* dq, const T* dout, const float* lse, const float* delta, const T* q,
                                                 const T* k, const T* v, PlainShape s) {
    int lane = threadIdx.x % 32;
    i64 at = (i64)blockIdx.x * 8 + threadIdx.x / 32;  // (b, t, h)
    if (at >= (i64)s.b * s.t * s.h) return;
    int head = at % s.h, t = at / s.h % s.t, kv_head = head / (s.h / s.hkv);
    i64 row = at / s.h - t;
    auto of = [&](const T* x, int key) { return x + ((row + key) * s.hkv + kv_head) * s.d; };
    Channels acc = {};
    for (int key = max(t - s.window, 0); key <= t; key += 32) {
        int count = min(t + 1 - key, 32);
        float ds = 0.0f;
        if (lane < count) {
            float p = expf(s.scale * dot(q + at * s.d, of(k, key + lane), s.d) - lse[at]);
            ds = s.scale * p * (dot(dout + at * s.d, of(v, key + lane), s.d) - delta[at]);
        }
        for (int i = 0; i < count; i++) acc.add(shfl(ds, i), of(k, key + i), s.d);
    }
    acc.store(dq + at * s.d, s.d);
}

template <class T>
__device__ __forceinline__ void plain_backward_kv(T* dk, T* dv, const T* dout, const float* lse, const float* delta,
                                                  const T* q, const T* k, const T* v, PlainShape s) {
    int lane = threadIdx.x % 32, group = s.h / s.hkv;
    i64 at = (i64)blockIdx.x * 8 + threadIdx.x / 32;  // (b, t, hkv)
    if (at >= (i64)s.b * s.t * s.hkv) return;
    int kv_head = at % s.hkv, key = at / s.hkv % s.t;
    i64 row = at / s.hkv - key;
    int last = min((i64)s.t - 1, (i64)key + s.window);
    Channels acc_k = {}, acc_v = {};
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
        auto index = [&](int query) { return (row + query) * s.h + head; };
        for (int query = key; query <= last; query += 32) {
            int count = min(last + 1 - query, 32);
            float p = 0.0f, ds = 0.0f;
            if (lane < count) {
                i64 from = index(query + lane);
                p = expf(s.scale * dot(q + from * s.d, k + at * s.d, s.d) - lse[from]);
                ds = s.scale * p * (dot(dout + from * s.d, v + at * s.d, s.d) - delta[from]);
            }
            for (int i = 0; i < count; i++) {
                i64 from = index(query + i) * s.d;
                acc_v.add(shfl(p, i), dout + from, s.d);
                acc_k.add(shfl(ds, i), q + from, s.d);
            }
        }
    }
    acc_k.store(dk + at * s.d, s.d);
    acc_v.store(dv + at * s.d, s.d);
}
