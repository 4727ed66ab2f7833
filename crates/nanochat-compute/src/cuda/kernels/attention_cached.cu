// Attention of new queries against a cache of keys and values in pages of 64 positions.
//
// q, out (rows, T, H, D), f32 or bf16; k, v (any number of pages, Hkv, 64, D), f32 or bf16; places int32
// (rows, 1 + pages): the position of the row's first query, then a page for every 64 positions from 0 on.
// The query at position p sees the keys p - window ..= p. Pages that no query sees are not looked at.
// {types}, of q and of the cache: f32_f32, bf16_bf16, f32_bf16. Hkv divides H.
//
//   kernel                                grid                                        block  shared bytes
//   attention_cached_{types}              (ceil(rows T H / 8), 1, 1)                  256    0
//   attention_decode_{types}_{D}_{heads}  (splits, Hkv ceil(H / Hkv / heads), rows)   128    16 heads (D + 4)
//   attention_decode_combine_{f32,bf16}   (H, rows, 1)                                128    0
//   attention_prefill_{D}                 (ceil(T / 64), H, rows)                     128    640 D
//
//   attention_cached_{types}              out, q, k, v, places, int rows, int t, int pages, int h, int hkv, int d,
//                                         int window, float scale
//   attention_decode_{types}_{D}_{heads}  partial, q, k, v, places, int pages, int h, int hkv, int window, float scale
//   attention_decode_combine_{type of q}  out, partial, int splits, int d
//   attention_prefill_{D}                 out, q, k, v, places, int t, int pages, int h, int hkv, int window, float scale
//
// `cached` takes any T and D <= 256, a warp for a query: simple, and slow for many queries or keys.
// `decode`, for T = 1 and D = 64 or 128: `splits` blocks (any number >= 1) share the pages that a query
// sees; a block takes `heads` (1 or 4) query heads of a key/value head at once. `partial` is scratch: f32
// (rows, H, splits, D + 4). `combine` then adds the splits up, in their order.
// `prefill`, for D = 64 or 128 and bf16 all through: tensor cores, any T. Any number of blocks share the
// queries of a row and head, 64 at a time.
#include "attention_decode.cuh"
#include "attention_forward.cuh"
#include "attention_plain.cuh"

// ---------------------------------------------------------------------------------------------
// Any shape
// ---------------------------------------------------------------------------------------------

template <class Q, class C>
__device__ __forceinline__ void cached(Q* out, const Q* q, const C* k, const C* v, const int* places, int rows, int t,
                                       int pages, int h, int hkv, int d, int window, float scale) {
    int lane = threadIdx.x % 32;
    i64 at = (i64)blockIdx.x * 8 + threadIdx.x / 32;  // (row, t, h)
    if (at >= (i64)rows * t * h) return;
    int kv_head = at % h / (h / hkv);
    const int* place = places + at / h / t * (1 + pages);
    int query = place[0] + at / h % t;
    auto of = [&](const C* x, int key) {
        return x + (((i64)place[1 + key / PAGE] * hkv + kv_head) * PAGE + key % PAGE) * d;
    };
    Attended sum;
    for (int key = max(query - window, 0); key <= query; key += 32) {
        int count = min(query + 1 - key, 32);
        float score = lane < count ? scale * dot(q + at * d, of(k, key + lane), d) : 0.0f;
        sum.add(score, count, d, [&](int i) { return of(v, key + i); });
    }
    sum.acc.scale(1.0f / sum.sum);
    sum.acc.store(out + at * d, d);
}

// ---------------------------------------------------------------------------------------------
// One query a row
// ---------------------------------------------------------------------------------------------

template <class Q, class C, int D, int HEADS>
__device__ __forceinline__ void decode(float* partial, const Q* q, const C* k, const C* v, const int* places, int pages,
                                       int h, int hkv, int window, float scale) {
    SHARED
    const int V = 16 / sizeof(C), LANES = D / V;           // that hold a key together
    const int AT_ONCE = DECODE_WARPS * 32 / LANES, N = 4;  // keys that the block loads at once, times N
    const int RECORD = D + 4;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, channel = lane % LANES * V, slot = threadIdx.x / LANES;

    int group = h / hkv, parts = (group + HEADS - 1) / HEADS;
    int kv_head = blockIdx.y / parts, head = kv_head * group + blockIdx.y % parts * HEADS;
    int heads = min(HEADS, (kv_head + 1) * group - head);
    i64 row = blockIdx.z;
    const int* place = places + row * (1 + pages);
    int query = place[0], first_key = max(query - window, 0), first_page = first_key / PAGE;
    int pages_each = (query / PAGE - first_page + gridDim.x) / gridDim.x;
    int page = first_page + blockIdx.x * pages_each;
    int key = max(first_key, page * PAGE), end = min(query + 1, (page + pages_each) * PAGE);

    float own_q[HEADS][V];
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        const Q* from = q + (row * h + head + (i < heads ? i : 0)) * D + channel;
#pragma unroll
        for (int j = 0; j < V; j++) own_q[i][j] = to_float(from[j]) * (scale * LOG2_E);
    }
    Partial<V> sums[HEADS];
    for (; key < end; key += N * AT_ONCE) {
        Chunk k_chunks[N], v_chunks[N];
#pragma unroll
        for (int n = 0; n < N; n++) {
            int own = min(key + n * AT_ONCE + slot, end - 1);
            i64 at = (((i64)place[1 + own / PAGE] * hkv + kv_head) * PAGE + own % PAGE) * D + channel;
            k_chunks[n] = *(const Chunk*)(k + at);
            v_chunks[n] = *(const Chunk*)(v + at);
        }
        float score[HEADS][N], value[N][V];
#pragma unroll
        for (int n = 0; n < N; n++) {
            float own_k[V];
            unpack(k_chunks[n], own_k);
            unpack(v_chunks[n], value[n]);
#pragma unroll
            for (int i = 0; i < HEADS; i++) {
                float sum = 0.0f;
#pragma unroll
                for (int j = 0; j < V; j++) sum += own_q[i][j] * own_k[j];
#pragma unroll
                for (int mask = LANES / 2; mask > 0; mask >>= 1) sum += shfl_xor(sum, mask);
                score[i][n] = key + n * AT_ONCE + slot < end ? sum : -INFINITY;
            }
        }
#pragma unroll
        for (int i = 0; i < HEADS; i++) sums[i].add(score[i], value);
    }

    float* space = (float*)shared;  // (warps, HEADS, RECORD)
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
#pragma unroll
        for (int mask = LANES; mask < 32; mask <<= 1) sums[i].add_lane(mask);
        float* record = space + (warp * HEADS + i) * RECORD;
        if (lane < LANES) {
#pragma unroll
            for (int j = 0; j < V; j++) record[channel + j] = sums[i].acc[j];
        }
        if (lane == 0) record[D] = sums[i].maximum, record[D + 1] = sums[i].sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < heads * D; i += DECODE_WARPS * 32) {
        int own_head = i / D, own_channel = i % D;
        Total total = add_partials(space + own_head * RECORD, DECODE_WARPS, HEADS * RECORD, D, own_channel);
        float* record = partial + ((row * h + head + own_head) * gridDim.x + blockIdx.x) * RECORD;
        record[own_channel] = total.channel;
        if (own_channel == 0) record[D] = total.maximum, record[D + 1] = total.sum;
    }
}

template <class Q> __device__ __forceinline__ void combine(Q* out, const float* partial, int splits, int d) {
    int channel = threadIdx.x;
    if (channel >= d) return;
    i64 at = (i64)blockIdx.y * gridDim.x + blockIdx.x, record = d + 4;
    Total total = add_partials(partial + at * splits * record, splits, record, d, channel);
    put(out + at * d + channel, total.channel / total.sum);
}

// ---------------------------------------------------------------------------------------------
// Many queries a row
// ---------------------------------------------------------------------------------------------

template <int D>
__device__ __forceinline__ void prefill(bf16* out, const bf16* q, const bf16* k, const bf16* v, const int* places,
                                        int t, int pages, int h, int hkv, int window, float scale) {
    int head = blockIdx.y;
    i64 row = blockIdx.z, q_at = (row * t * h + head) * D, kv_at = (i64)(head / (h / hkv)) * PAGE * D;
    const int* place = places + row * (1 + pages);
    Queries queries = {q + q_at, out + q_at, nullptr, (i64)h * D, 0, t, place[0]};
    PagedKeys keys = {k + kv_at, v + kv_at, D, place + 1, (i64)hkv * PAGE * D};
    // Late queries see the most keys: they go first.
    for (int part = (t - 1) / 64 - (int)blockIdx.x; part >= 0; part -= gridDim.x) {
        attend_block<D, 1>(queries, keys, part * 64, window, scale);
        __syncthreads();
    }
}

// ---------------------------------------------------------------------------------------------
// Instances
// ---------------------------------------------------------------------------------------------

#define CACHED(TYPES, Q, C)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) attention_cached_##TYPES(                                       \
        Q* __restrict__ out, const Q* __restrict__ q, const C* __restrict__ k, const C* __restrict__ v,               \
        const int* __restrict__ places, int rows, int t, int pages, int h, int hkv, int d, int window, float scale) { \
        cached(out, q, k, v, places, rows, t, pages, h, hkv, d, window, scale);                                       \
    }                                                                                                                 \
    DECODE(TYPES, Q, C, 64, 1)                                                                                        \
    DECODE(TYPES, Q, C, 64, 4)                                                                                        \
    DECODE(TYPES, Q, C, 128, 1)                                                                                       \
    DECODE(TYPES, Q, C, 128, 4)

#define DECODE(TYPES, Q, C, D, HEADS)                                                                   \
    extern "C" __global__ void __launch_bounds__(128) attention_decode_##TYPES##_##D##_##HEADS(         \
        float* __restrict__ partial, const Q* __restrict__ q, const C* __restrict__ k,                  \
        const C* __restrict__ v, const int* __restrict__ places, int pages, int h, int hkv, int window, \
        float scale) {                                                                                  \
        decode<Q, C, D, HEADS>(partial, q, k, v, places, pages, h, hkv, window, scale);                 \
    }

CACHED(f32_f32, float, float)
CACHED(bf16_bf16, bf16, bf16)
CACHED(f32_bf16, float, bf16)

extern "C" __global__ void __launch_bounds__(128)
    attention_decode_combine_f32(float* __restrict__ out, const float* __restrict__ partial, int splits, int d) {
    combine(out, partial, splits, d);
}
extern "C" __global__ void __launch_bounds__(128)
    attention_decode_combine_bf16(bf16* __restrict__ out, const float* __restrict__ partial, int splits, int d) {
    combine(out, partial, splits, d);
}

extern "C" __global__ void __launch_bounds__(FORWARD_THREADS)
    attention_prefill_64(bf16* __restrict__ out, const bf16* __restrict__ q, const bf16* __restrict__ k,
                         const bf16* __restrict__ v, const int* __restrict__ places, int t, int pages, int h, int hkv,
                         int window, float scale) {
    prefill<64>(out, q, k, v, places, t, pages, h, hkv, window, scale);
}
extern "C" __global__ void __launch_bounds__(FORWARD_THREADS)
    attention_prefill_128(bf16* __restrict__ out, const bf16* __restrict__ q, const bf16* __restrict__ k,
                          const bf16* __restrict__ v, const int* __restrict__ places, int t, int pages, int h, int hkv,
                          int window, float scale) {
    prefill<128>(out, q, k, v, places, t, pages, h, hkv, window, scale);
}

KERNELS(attention_cached_f32_f32, attention_cached_bf16_bf16, attention_cached_f32_bf16,
        attention_decode_f32_f32_64_1, attention_decode_f32_f32_64_4, attention_decode_f32_f32_128_1,
        attention_decode_f32_f32_128_4, attention_decode_bf16_bf16_64_1, attention_decode_bf16_bf16_64_4,
        attention_decode_bf16_bf16_128_1, attention_decode_bf16_bf16_128_4, attention_decode_f32_bf16_64_1,
        attention_decode_f32_bf16_64_4, attention_decode_f32_bf16_128_1, attention_decode_f32_bf16_128_4,
        attention_decode_combine_f32, attention_decode_combine_bf16, attention_prefill_64, attention_prefill_128)
