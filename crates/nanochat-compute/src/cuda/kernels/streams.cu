// Element by element: sums, mixes of residual streams, ReLU squared, casts. Formulas: `ops/mix.rs`,
// `ops/relu2.rs`, `ops/loss.rs`.
//
// T is the type of activations, V the elements of one access (4 where lengths and addresses allow).
// Any grid of one dimension does: threads walk the elements with the stride of the launch. Kernels
// that also sum write one partial sum a block to `partial`; `add_sums` adds those up in order, so that
// a result never depends on which block was first.
#include "device.cuh"

template <class T, int V> __device__ __forceinline__ void fill(T* x, i64 n, float value) {
    Floats<V> v;
    for (int i = 0; i < V; i++) v.x[i] = value;
    for (i64 at = thread_index() * V; at < n; at += thread_count() * V) Access<V>::set(x + at, v);
}

template <class T, class S, int V> __device__ __forceinline__ void cast(T* out, const S* x, i64 n) {
    for (i64 at = thread_index() * V; at < n; at += thread_count() * V) {
        Access<V>::set(out + at, Access<V>::get(x + at));
    }
}

template <class T, int V> __device__ __forceinline__ void add(T* out, const T* x, i64 n) {
    for (i64 at = thread_index() * V; at < n; at += thread_count() * V) {
        Floats<V> o = Access<V>::get(out + at), v = Access<V>::get(x + at);
        for (int i = 0; i < V; i++) o.x[i] += v.x[i];
        Access<V>::set(out + at, o);
    }
}

template <class T, int V> __device__ __forceinline__ void mix(
    T* out, const T* x, const T* y, const float* a, const float* b, i64 n) {
    float fa = *a, fb = *b;
    for (i64 at = thread_index() * V; at < n; at += thread_count() * V) {
        Floats<V> u = Access<V>::get(x + at), v = Access<V>::get(y + at);
        for (int i = 0; i < V; i++) u.x[i] = fa * u.x[i] + fb * v.x[i];
        Access<V>::set(out + at, u);
    }
}

// partial: (blocks, 2), the sums of d x and d y of each block.
template <class T, int V> __device__ __forceinline__ void mix_backward(
    T* d, T* dy, float* partial, const T* x, const T* y, const float* a, const float* b, i64 n) {
    SHARED
    float* space = (float*)shared;
    float fa = *a, fb = *b, da = 0.0f, db = 0.0f;
    for (i64 at = thread_index() * V; at < n; at += thread_count() * V) {
        Floats<V> g = Access<V>::get(d + at), gy = Access<V>::get(dy + at);
        Floats<V> u = Access<V>::get(x + at), v = Access<V>::get(y + at);
        for (int i = 0; i < V; i++) {
            da += g.x[i] * u.x[i];
            db += g.x[i] * v.x[i];
            gy.x[i] += fb * g.x[i];
            g.x[i] *= fa;
        }
        Access<V>::set(d + at, g);
        Access<V>::set(dy + at, gy);
    }
    da = block_sum(da, space);
    db = block_sum(db, space);
    if (threadIdx.x == 0) {
        partial[2 * blockIdx.x] = da;
        partial[2 * blockIdx.x + 1] = db;
    }
}

template <class T, int V> __device__ __forceinline__ void backout(
    T* out, const T* x, const T* y, const float* lambda, i64 n) {
    float l = *lambda;
    for (i64 at = thread_index() * V; at < n; at += thread_count() * V) {
        Floats<V> u = Access<V>::get(x + at), v = Access<V>::get(y + at);
        for (int i = 0; i < V; i++) u.x[i] -= l * v.x[i];
        Access<V>::set(out + at, u);
    }
}

// partial: (blocks), the sums of -dout y of each block.
template <class T, int V> __device__ __forceinline__ void backout_backward(
    T* dy, float* partial, const T* dout, const T* y, const float* lambda, i64 n) {
    SHARED
    float l = *lambda, sum = 0.0f;
    for (i64 at = thread_index() * V; at < n; at += thread_count() * V) {
        Floats<V> g = Access<V>::get(dout + at), v = Access<V>::get(y + at);
        for (int i = 0; i < V; i++) {
            sum -= g.x[i] * v.x[i];
            g.x[i] *= -l;
        }
        Access<V>::set(dy + at, g);
    }
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class T, int V> __device__ __forceinline__ void relu2(T* out, T* x, i64 n) {
    for (i64 at = thread_index() * V; at < n; at += thread_count() * V) {
        Floats<V> r = Access<V>::get(x + at), s;
        for (int i = 0; i < V; i++) {
            r.x[i] = fmaxf(r.x[i], 0.0f);
            s.x[i] = r.x[i] * r.x[i];
        }
        Access<V>::set(x + at, r);
        Access<V>::set(out + at, s);
    }
}

template <class T, int V> __device__ __forceinline__ void relu2_backward(T* d, const T* r, i64 n) {
    for (i64 at = thread_index() * V; at < n; at += thread_count() * V) {
        Floats<V> g = Access<V>::get(d + at), v = Access<V>::get(r + at);
        for (int i = 0; i < V; i++) g.x[i] *= 2.0f * v.x[i];
        Access<V>::set(d + at, g);
    }
}

template <class T, int V> __device__ __forceinline__ void relu2_in_place(T* x, i64 n) {
    for (i64 at = thread_index() * V; at < n; at += thread_count() * V) {
        Floats<V> r = Access<V>::get(x + at);
        for (int i = 0; i < V; i++) {
            float positive = fmaxf(r.x[i], 0.0f);
            r.x[i] = positive * positive;
        }
        Access<V>::set(x + at, r);
    }
}

template <class T, int V> __device__ __forceinline__ void relu2_in_place_backward(T* d, const T* a, i64 n) {
    for (i64 at = thread_index() * V; at < n; at += thread_count() * V) {
        Floats<V> g = Access<V>::get(d + at), v = Access<V>::get(a + at);
        for (int i = 0; i < V; i++) g.x[i] *= 2.0f * sqrtf(v.x[i]);
        Access<V>::set(d + at, g);
    }
}

template <class T, int V> __device__ __forceinline__ void square(T* out, const T* r, i64 n) {
    for (i64 at = thread_index() * V; at < n; at += thread_count() * V) {
        Floats<V> v = Access<V>::get(r + at);
        for (int i = 0; i < V; i++) v.x[i] *= v.x[i];
        Access<V>::set(out + at, v);
    }
}

template <class T, int V> __device__ __forceinline__ void softcap(T* x, float cap, i64 n) {
    for (i64 at = thread_index() * V; at < n; at += thread_count() * V) {
        Floats<V> v = Access<V>::get(x + at);
        for (int i = 0; i < V; i++) v.x[i] = cap * tanhf(v.x[i] / cap);
        Access<V>::set(x + at, v);
    }
}

#define STREAMS(T, V, SUFFIX) \
extern "C" __global__ void fill_##SUFFIX(T* x, i64 n, float value) { fill<T, V>(x, n, value); } \
extern "C" __global__ void add_##SUFFIX(T* out, const T* x, i64 n) { add<T, V>(out, x, n); } \
extern "C" __global__ void mix_##SUFFIX(T* out, const T* x, const T* y, const float* a, const float* b, i64 n) { mix<T, V>(out, x, y, a, b, n); } \
extern "C" __global__ void mix_backward_##SUFFIX(T* d, T* dy, float* partial, const T* x, const T* y, const float* a, const float* b, i64 n) { mix_backward<T, V>(d, dy, partial, x, y, a, b, n); } \
extern "C" __global__ void backout_##SUFFIX(T* out, const T* x, const T* y, const float* lambda, i64 n) { backout<T, V>(out, x, y, lambda, n); } \
extern "C" __global__ void backout_backward_##SUFFIX(T* dy, float* partial, const T* dout, const T* y, const float* lambda, i64 n) { backout_backward<T, V>(dy, partial, dout, y, lambda, n); } \
extern "C" __global__ void relu2_##SUFFIX(T* out, T* x, i64 n) { relu2<T, V>(out, x, n); } \
extern "C" __global__ void relu2_backward_##SUFFIX(T* d, const T* r, i64 n) { relu2_backward<T, V>(d, r, n); } \
extern "C" __global__ void relu2_in_place_##SUFFIX(T* x, i64 n) { relu2_in_place<T, V>(x, n); } \
extern "C" __global__ void relu2_in_place_backward_##SUFFIX(T* d, const T* a, i64 n) { relu2_in_place_backward<T, V>(d, a, n); } \
extern "C" __global__ void square_##SUFFIX(T* out, const T* r, i64 n) { square<T, V>(out, r, n); } \
extern "C" __global__ void softcap_##SUFFIX(T* x, float cap, i64 n) { softcap<T, V>(x, cap, n); } \
KERNELS(fill_##SUFFIX, add_##SUFFIX, mix_##SUFFIX, mix_backward_##SUFFIX, backout_##SUFFIX, backout_backward_##SUFFIX, relu2_##SUFFIX, relu2_backward_##SUFFIX, square_##SUFFIX, relu2_in_place_##SUFFIX, relu2_in_place_backward_##SUFFIX, softcap_##SUFFIX)

STREAMS(float, 1, f32x1)
STREAMS(float, 4, f32x4)
STREAMS(bf16, 1, bf16x1)
STREAMS(bf16, 4, bf16x4)

extern "C" __global__ void narrow_x1(bf16* out, const float* x, i64 n) { cast<bf16, float, 1>(out, x, n); }
extern "C" __global__ void narrow_x4(bf16* out, const float* x, i64 n) { cast<bf16, float, 4>(out, x, n); }
extern "C" __global__ void widen_x1(float* out, const bf16* x, i64 n) { cast<float, bf16, 1>(out, x, n); }
extern "C" __global__ void widen_x4(float* out, const bf16* x, i64 n) { cast<float, bf16, 4>(out, x, n); }

// Sums of each block over x (n): partial (blocks).
extern "C" __global__ void sum_blocks(float* partial, const float* x, i64 n) {
    SHARED
    float sum = 0.0f;
    for (i64 at = thread_index(); at < n; at += thread_count()) sum += x[at];
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// out[i] += sum over r < rows of partial[r, i]; one block for each i, columns apart by `stride`.
extern "C" __global__ void add_sums(float* out, const float* partial, int rows, int stride) {
    SHARED
    float sum = 0.0f;
    for (int r = threadIdx.x; r < rows; r += blockDim.x) sum += partial[(i64)r * stride + blockIdx.x];
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x == 0) out[blockIdx.x] += sum;
}

KERNELS(narrow_x1, narrow_x4, widen_x1, widen_x4, sum_blocks, add_sums)
