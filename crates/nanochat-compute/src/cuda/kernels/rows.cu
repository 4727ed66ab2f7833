// A warp for a row: RMSNorm, rotary embedding with norm, smear, value gates, rows of tables.
// Formulas: `ops/norm.rs`, `ops/rope.rs`, `ops/smear.rs`, `ops/value_gate.rs`, `ops/embedding.rs`.
//
// Grid: one dimension, one warp for each row (row = thread / 32), any number of warps a block.
#include "device.cuh"

__device__ __forceinline__ i64 warp_index() { return thread_index() / 32; }
__device__ __forceinline__ int lane_index() { return threadIdx.x % 32; }

template <class T, int V> __device__ __forceinline__ void norm(
    T* out, float* rstd, const T* x, i64 rows, int c, float eps) {
    i64 row = warp_index();
    if (row >= rows) return;
    x += row * c;
    out += row * c;
    float sum = 0.0f;
    for (int at = lane_index() * V; at < c; at += 32 * V) {
        Floats<V> v = Access<V>::get(x + at);
        for (int i = 0; i < V; i++) sum += v.x[i] * v.x[i];
    }
    float r = 1.0f / sqrtf(warp_sum(sum) / c + eps);
    if (lane_index() == 0) rstd[row] = r;
    for (int at = lane_index() * V; at < c; at += 32 * V) {
        Floats<V> v = Access<V>::get(x + at);
        for (int i = 0; i < V; i++) v.x[i] *= r;
        Access<V>::set(out + at, v);
    }
}

template <class T, int V> __device__ __forceinline__ void norm_backward(
    T* dx, const T* dout, const T* out, const float* rstd, i64 rows, int c, float beta) {
    i64 row = warp_index();
    if (row >= rows) return;
    dx += row * c;
    dout += row * c;
    out += row * c;
    float dot = 0.0f;
    for (int at = lane_index() * V; at < c; at += 32 * V) {
        Floats<V> g = Access<V>::get(dout + at), o = Access<V>::get(out + at);
        for (int i = 0; i < V; i++) dot += g.x[i] * o.x[i];
    }
    float mean = warp_sum(dot) / c, r = rstd[row];
    for (int at = lane_index() * V; at < c; at += 32 * V) {
        Floats<V> g = Access<V>::get(dout + at), o = Access<V>::get(out + at), old;
        if (beta != 0.0f) old = Access<V>::get(dx + at);
        for (int i = 0; i < V; i++) {
            float add = r * (g.x[i] - o.x[i] * mean);
            g.x[i] = beta == 0.0f ? add : beta * old.x[i] + add;
        }
        Access<V>::set(dx + at, g);
    }
}

// x: heads of d channels, `h` of them a position, `t` positions a row, which begins at `start`, or at
// that much after its own place (places may be absent).
template <class T> __device__ __forceinline__ void rope_norm(
    T* x, float* rstd, const float* cosine, const float* sine, i64 heads, int t, int h, int d, int start,
    const int* places, int stride, float scale, float eps) {
    i64 head = warp_index();
    if (head >= heads) return;
    int half = d / 2;
    if (places) start += places[head / h / t * stride];
    i64 at = (start + head / h % t) * half;
    x += head * d;
    cosine += at;
    sine += at;
    float sum = 0.0f;
    for (int j = lane_index(); j < half; j += 32) {
        float a = to_float(x[j]), b = to_float(x[j + half]), c = cosine[j], s = sine[j];
        float y1 = a * c + b * s, y2 = b * c - a * s;
        sum += y1 * y1 + y2 * y2;
    }
    float r = 1.0f / sqrtf(warp_sum(sum) / d + eps);
    if (lane_index() == 0) rstd[head] = r;
    r *= scale;
    for (int j = lane_index(); j < half; j += 32) {
        float a = to_float(x[j]), b = to_float(x[j + half]), c = cosine[j], s = sine[j];
        put(x + j, r * (a * c + b * s));
        put(x + j + half, r * (b * c - a * s));
    }
}

template <class T> __device__ __forceinline__ void rope_norm_backward(
    T* dx, const T* out, const float* rstd, const float* cosine, const float* sine, i64 heads, int t, int h,
    int d, int start, float scale) {
    i64 head = warp_index();
    if (head >= heads) return;
    int half = d / 2;
    i64 at = (start + head / h % t) * half;
    dx += head * d;
    out += head * d;
    cosine += at;
    sine += at;
    float dot = 0.0f;
    for (int j = lane_index(); j < d; j += 32) dot += to_float(dx[j]) * to_float(out[j]);
    float m = warp_sum(dot) / (d * scale * scale), r = scale * rstd[head];
    for (int j = lane_index(); j < half; j += 32) {
        float a = r * (to_float(dx[j]) - to_float(out[j]) * m);
        float b = r * (to_float(dx[j + half]) - to_float(out[j + half]) * m);
        float c = cosine[j], s = sine[j];
        put(dx + j, a * c - b * s);
        put(dx + j + half, a * s + b * c);
    }
}

// Sum over `group` lanes next to each other, a power of two, in each of them.
__device__ __forceinline__ float group_sum(float x, int group) {
    for (int mask = group / 2; mask > 0; mask >>= 1) x += shfl_xor(x, mask);
    return x;
}

// As rope_norm where d is 8 times a power of two, up to 256: d / 8 lanes for a head, each with four
// pairs that stay in registers. Grid: one dimension, that many threads a head.
template <class T> __device__ __forceinline__ void rope_norm_grouped(
    T* x, float* rstd, const float* cosine, const float* sine, i64 heads, int t, int h, int d, int start,
    const int* places, int stride, float scale, float eps) {
    int half = d / 2, group = d / 8;
    i64 head = thread_index() / group;
    int j = thread_index() % group * 4;
    // Lanes past the last head take part in the sums with the last one's numbers.
    bool there = head < heads;
    if (!there) head = heads - 1;
    if (places) start += places[head / h / t * stride];
    i64 at = (start + head / h % t) * half + j;
    x += head * d + j;
    Floats<4> a = Access<4>::get(x), b = Access<4>::get(x + half);
    Floats<4> c = Access<4>::get(cosine + at), s = Access<4>::get(sine + at);
    float sum = 0.0f;
    for (int i = 0; i < 4; i++) {
        float y1 = a.x[i] * c.x[i] + b.x[i] * s.x[i], y2 = b.x[i] * c.x[i] - a.x[i] * s.x[i];
        a.x[i] = y1;
        b.x[i] = y2;
        sum += y1 * y1 + y2 * y2;
    }
    float r = 1.0f / sqrtf(group_sum(sum, group) / d + eps);
    if (!there) return;
    if (j == 0) rstd[head] = r;
    for (int i = 0; i < 4; i++) {
        a.x[i] *= r * scale;
        b.x[i] *= r * scale;
    }
    Access<4>::set(x, a);
    Access<4>::set(x + half, b);
}

template <class T> __device__ __forceinline__ void rope_norm_backward_grouped(
    T* dx, const T* out, const float* rstd, const float* cosine, const float* sine, i64 heads, int t, int h,
    int d, int start, float scale) {
    int half = d / 2, group = d / 8;
    i64 head = thread_index() / group;
    int j = thread_index() % group * 4;
    bool there = head < heads;
    if (!there) head = heads - 1;
    i64 at = (start + head / h % t) * half + j;
    dx += head * d + j;
    out += head * d + j;
    Floats<4> a = Access<4>::get(dx), b = Access<4>::get(dx + half);
    Floats<4> o1 = Access<4>::get(out), o2 = Access<4>::get(out + half);
    Floats<4> c = Access<4>::get(cosine + at), s = Access<4>::get(sine + at);
    float dot = 0.0f;
    for (int i = 0; i < 4; i++) dot += a.x[i] * o1.x[i] + b.x[i] * o2.x[i];
    float m = group_sum(dot, group) / (d * scale * scale), r = scale * rstd[head];
    if (!there) return;
    for (int i = 0; i < 4; i++) {
        float y1 = r * (a.x[i] - o1.x[i] * m), y2 = r * (b.x[i] - o2.x[i] * m);
        a.x[i] = y1 * c.x[i] - y2 * s.x[i];
        b.x[i] = y1 * s.x[i] + y2 * c.x[i];
    }
    Access<4>::set(dx, a);
    Access<4>::set(dx + half, b);
}

template <class T, int V> __device__ __forceinline__ void smear(
    T* out, float* gate, const T* x, const float* w, const float* lambda, i64 rows, int t, int c, int channels) {
    i64 row = warp_index();
    if (row >= rows) return;
    bool first = row % t == 0;
    x += row * c;
    out += row * c;
    float dot = 0.0f;
    for (int i = lane_index(); i < channels; i += 32) dot += w[i] * to_float(x[i]);
    float g = sigmoid(warp_sum(dot)), share = first ? 0.0f : *lambda * g;
    if (lane_index() == 0) gate[row] = g;
    for (int at = lane_index() * V; at < c; at += 32 * V) {
        Floats<V> v = Access<V>::get(x + at);
        if (!first) {
            Floats<V> before = Access<V>::get(x - c + at);
            for (int i = 0; i < V; i++) v.x[i] += share * before.x[i];
        }
        Access<V>::set(out + at, v);
    }
}

// z (rows) gets lambda s g (1 - g) and sg (rows) s g, for the sums of dw and dlambda.
template <class T, int V> __device__ __forceinline__ void smear_backward(
    T* dx, float* z, float* sg, const T* dout, const T* x, const float* gate, const float* w,
    const float* lambda, i64 rows, int t, int c, int channels) {
    i64 row = warp_index();
    if (row >= rows) return;
    bool first = row % t == 0, last = (row + 1) % t == 0;
    x += row * c;
    dx += row * c;
    dout += row * c;
    float l = *lambda, g = gate[row], dot = 0.0f;
    if (!first) {
        for (int at = lane_index() * V; at < c; at += 32 * V) {
            Floats<V> d = Access<V>::get(dout + at), before = Access<V>::get(x - c + at);
            for (int i = 0; i < V; i++) dot += d.x[i] * before.x[i];
        }
    }
    dot = warp_sum(dot);
    float own = l * dot * g * (1.0f - g), after = last ? 0.0f : l * gate[row + 1];
    if (lane_index() == 0) {
        z[row] = own;
        sg[row] = dot * g;
    }
    for (int at = lane_index() * V; at < c; at += 32 * V) {
        Floats<V> d = Access<V>::get(dout + at);
        if (!last) {
            Floats<V> next = Access<V>::get(dout + c + at);
            for (int i = 0; i < V; i++) d.x[i] += after * next.x[i];
        }
        for (int i = 0; i < V; i++) {
            if (at + i < channels) d.x[i] += own * w[at + i];
        }
        Access<V>::set(dx + at, d);
    }
}

// One warp for each (row, head).
template <class T, int V> __device__ __forceinline__ void value_gate(
    T* v, float* gate, const float* table, const int* ids, const T* y, const float* w, i64 rows, int vocab,
    int c, int hkv, int d, int channels, float scale) {
    i64 at = warp_index();
    if (at >= rows * hkv) return;
    i64 row = at / hkv;
    int head = at % hkv, id = ids[row];
    float dot = 0.0f;
    for (int i = lane_index(); i < channels; i += 32) dot += w[head * channels + i] * to_float(y[row * c + i]);
    float g = scale * sigmoid(warp_sum(dot));
    // An id outside the table has no row: what it makes is not a number, and is seen.
    if (id < 0 || id >= vocab) g = NAN;
    if (lane_index() == 0) gate[at] = g;
    const float* from = table + (id < 0 || id >= vocab ? 0 : ((i64)id * hkv + head) * d);
    v += at * d;
    for (int j = lane_index() * V; j < d; j += 32 * V) {
        Floats<V> e = Access<V>::get(from + j), o = Access<V>::get(v + j);
        for (int i = 0; i < V; i++) o.x[i] += g * e.x[i];
        Access<V>::set(v + j, o);
    }
}

// One warp for each row; z (rows, hkv) gets the gradient of the gate's argument.
template <class T, int V> __device__ __forceinline__ void value_gate_backward(
    T* dy, float* z, const T* dv, const float* table, const int* ids, const float* w, const float* gate,
    i64 rows, int vocab, int c, int hkv, int d, int channels, float scale) {
    i64 row = warp_index();
    if (row >= rows) return;
    int id = ids[row];
    if (id < 0 || id >= vocab) return;
    for (int head = 0; head < hkv; head++) {
        const float* from = table + ((i64)id * hkv + head) * d;
        const T* g = dv + (row * hkv + head) * d;
        float dot = 0.0f;
        for (int j = lane_index() * V; j < d; j += 32 * V) {
            Floats<V> e = Access<V>::get(from + j), o = Access<V>::get(g + j);
            for (int i = 0; i < V; i++) dot += e.x[i] * o.x[i];
        }
        float own = gate[row * hkv + head];
        float share = warp_sum(dot) * own * (1.0f - own / scale);
        if (lane_index() == 0) z[row * hkv + head] = share;
        for (int i = lane_index(); i < channels; i += 32) {
            T* to = dy + row * c + i;
            put(to, to_float(*to) + share * w[head * channels + i]);
        }
    }
}

// partial (blocks, heads * channels): sums over the block's rows of z[row, head] x[row, channel].
template <class T> __device__ __forceinline__ void gate_grad(
    float* partial, const float* z, const T* x, i64 rows, int c, int heads, int channels, int rows_a_block) {
    i64 first = (i64)blockIdx.x * rows_a_block, end = first + rows_a_block < rows ? first + rows_a_block : rows;
    for (int i = threadIdx.x; i < heads * channels; i += blockDim.x) {
        int head = i / channels, channel = i % channels;
        float sum = 0.0f;
        for (i64 row = first; row < end; row++) sum += z[row * heads + head] * to_float(x[row * c + channel]);
        partial[(i64)blockIdx.x * heads * channels + i] = sum;
    }
}

template <class T, class S, int V> __device__ __forceinline__ void embedding(
    T* out, const S* table, const int* ids, i64 rows, int vocab, int c) {
    i64 row = warp_index();
    if (row >= rows) return;
    int id = ids[row];
    bool there = id >= 0 && id < vocab;
    for (int at = lane_index() * V; at < c; at += 32 * V) {
        Floats<V> v;
        for (int i = 0; i < V; i++) v.x[i] = NAN;
        if (there) v = Access<V>::get(table + (i64)id * c + at);
        Access<V>::set(out + row * c + at, v);
    }
}

template <class T, class S, int V> __device__ __forceinline__ void place_rows(
    S* table, const T* x, const int* ids, i64 rows, int vocab, int c) {
    i64 row = warp_index();
    if (row >= rows) return;
    int id = ids[row];
    if (id < 0 || id >= vocab) return;
    for (int at = lane_index() * V; at < c; at += 32 * V) {
        Access<V>::set(table + (i64)id * c + at, Access<V>::get(x + row * c + at));
    }
}

#define ROWS(T, V, SUFFIX) \
extern "C" __global__ void norm_##SUFFIX(T* out, float* rstd, const T* x, i64 rows, int c, float eps) { norm<T, V>(out, rstd, x, rows, c, eps); } \
extern "C" __global__ void norm_backward_##SUFFIX(T* dx, const T* dout, const T* out, const float* rstd, i64 rows, int c, float beta) { norm_backward<T, V>(dx, dout, out, rstd, rows, c, beta); } \
extern "C" __global__ void smear_##SUFFIX(T* out, float* gate, const T* x, const float* w, const float* lambda, i64 rows, int t, int c, int channels) { smear<T, V>(out, gate, x, w, lambda, rows, t, c, channels); } \
extern "C" __global__ void smear_backward_##SUFFIX(T* dx, float* z, float* sg, const T* dout, const T* x, const float* gate, const float* w, const float* lambda, i64 rows, int t, int c, int channels) { smear_backward<T, V>(dx, z, sg, dout, x, gate, w, lambda, rows, t, c, channels); } \
extern "C" __global__ void value_gate_##SUFFIX(T* v, float* gate, const float* table, const int* ids, const T* y, const float* w, i64 rows, int vocab, int c, int hkv, int d, int channels, float scale) { value_gate<T, V>(v, gate, table, ids, y, w, rows, vocab, c, hkv, d, channels, scale); } \
extern "C" __global__ void value_gate_backward_##SUFFIX(T* dy, float* z, const T* dv, const float* table, const int* ids, const float* w, const float* gate, i64 rows, int vocab, int c, int hkv, int d, int channels, float scale) { value_gate_backward<T, V>(dy, z, dv, table, ids, w, gate, rows, vocab, c, hkv, d, channels, scale); } \
extern "C" __global__ void embedding_##SUFFIX(T* out, const float* table, const int* ids, i64 rows, int vocab, int c) { embedding<T, float, V>(out, table, ids, rows, vocab, c); } \
extern "C" __global__ void place_f32_##SUFFIX(float* table, const T* x, const int* ids, i64 rows, int vocab, int c) { place_rows<T, float, V>(table, x, ids, rows, vocab, c); } \
extern "C" __global__ void place_bf16_##SUFFIX(bf16* table, const T* x, const int* ids, i64 rows, int vocab, int c) { place_rows<T, bf16, V>(table, x, ids, rows, vocab, c); } \
KERNELS(norm_##SUFFIX, norm_backward_##SUFFIX, smear_##SUFFIX, smear_backward_##SUFFIX, value_gate_##SUFFIX, value_gate_backward_##SUFFIX, embedding_##SUFFIX, place_f32_##SUFFIX, place_bf16_##SUFFIX)

ROWS(float, 1, f32x1)
ROWS(float, 4, f32x4)
ROWS(bf16, 1, bf16x1)
ROWS(bf16, 4, bf16x4)

#define HEADS(T, SUFFIX) \
extern "C" __global__ void rope_norm_##SUFFIX(T* x, float* rstd, const float* cosine, const float* sine, i64 heads, int t, int h, int d, int start, const int* places, int stride, float scale, float eps) { rope_norm<T>(x, rstd, cosine, sine, heads, t, h, d, start, places, stride, scale, eps); } \
extern "C" __global__ void rope_norm_backward_##SUFFIX(T* dx, const T* out, const float* rstd, const float* cosine, const float* sine, i64 heads, int t, int h, int d, int start, float scale) { rope_norm_backward<T>(dx, out, rstd, cosine, sine, heads, t, h, d, start, scale); } \
extern "C" __global__ void gate_grad_##SUFFIX(float* partial, const float* z, const T* x, i64 rows, int c, int heads, int channels, int rows_a_block) { gate_grad<T>(partial, z, x, rows, c, heads, channels, rows_a_block); } \
extern "C" __global__ void rope_norm_grouped_##SUFFIX(T* x, float* rstd, const float* cosine, const float* sine, i64 heads, int t, int h, int d, int start, const int* places, int stride, float scale, float eps) { rope_norm_grouped<T>(x, rstd, cosine, sine, heads, t, h, d, start, places, stride, scale, eps); } \
extern "C" __global__ void rope_norm_backward_grouped_##SUFFIX(T* dx, const T* out, const float* rstd, const float* cosine, const float* sine, i64 heads, int t, int h, int d, int start, float scale) { rope_norm_backward_grouped<T>(dx, out, rstd, cosine, sine, heads, t, h, d, start, scale); } \
KERNELS(rope_norm_##SUFFIX, rope_norm_backward_##SUFFIX, rope_norm_grouped_##SUFFIX, rope_norm_backward_grouped_##SUFFIX, gate_grad_##SUFFIX)

HEADS(float, f32)
HEADS(bf16, bf16)

// Rows of a table of bf16 as they are: the last stream of chosen positions.
extern "C" __global__ void gather_bf16x1(bf16* out, const bf16* table, const int* ids, i64 rows, int vocab, int c) { embedding<bf16, bf16, 1>(out, table, ids, rows, vocab, c); }
extern "C" __global__ void gather_bf16x4(bf16* out, const bf16* table, const int* ids, i64 rows, int vocab, int c) { embedding<bf16, bf16, 4>(out, table, ids, rows, vocab, c); }
KERNELS(gather_bf16x1, gather_bf16x4)
