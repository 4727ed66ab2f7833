// Attention of one query a row that is not yet rotated, with its key and value, which are not yet in the
// cache: rope, norm, both rows of the cache, and attention in one kernel.
//
// q, out f32 (rows, H, D); k, v f32 (rows, Hkv, D); keys, values (any number of pages, Hkv, 64, D), f32 or
// bf16; places int32 (rows, 1 + pages): the row's position, then a page for every 64 positions; cosine, sine
// f32 (any number of positions, D / 2). D is 64 or 128.
//
//   kernel                              grid                                        block  shared bytes
//   attention_step_{cache}_{D}_{heads}  (splits, Hkv ceil(H / Hkv / heads), rows)   128    16 heads (D + 4)
//                                                                                          + 4 (heads + 1) D + 16
//
// As `attention_decode`: `splits` blocks share the pages that a query sees; where one page is all, nothing is
// to be added up. The one that has the query's own
// position gets that key from where it made it, not from the cache, to which other blocks write it. The last
// block of a head that is done adds the splits up, in their order. `partial` is scratch, f32 (rows, H,
// splits, D + 4); `arrived` int32 (rows, Hkv ceil(H / Hkv / heads)) is 0 before and after. Launched early.
#include "attention_decode.cuh"

template <class C, int D, int HEADS>
__device__ __forceinline__ void attention_step(
    float* out, float* partial, int* arrived, const float* q, const float* k, const float* v, C* keys, C* values,
    const float* cosine, const float* sine, const int* places, int pages, int h, int hkv, int window, float scale,
    float qk_scale, float eps) {
    SHARED
    let_next_begin();
    const int V = 16 / sizeof(C), LANES = D / V;           // that hold a key together
    const int AT_ONCE = DECODE_WARPS * 32 / LANES, N = 4;  // keys that the block loads at once, times N
    const int RECORD = D + 4;
    float* space = (float*)shared;                          // (warps, HEADS, RECORD)
    float* heads_of = space + DECODE_WARPS * HEADS * RECORD;  // (HEADS + 1, D): queries, then the new key
    int* last = (int*)(heads_of + (HEADS + 1) * D);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, channel = lane % LANES * V, slot = threadIdx.x / LANES;

    int group = h / hkv, parts = (group + HEADS - 1) / HEADS;
    int kv_head = blockIdx.y / parts, head = kv_head * group + blockIdx.y % parts * HEADS;
    int heads = min(HEADS, (kv_head + 1) * group - head);
    i64 row = blockIdx.z;
    const int* place = places + row * (1 + pages);
    int query = place[0], first_key = max(query - window, 0), first_page = first_key / PAGE;
    int pages_each = (query / PAGE - first_page + gridDim.x) / gridDim.x;
    int page = first_page + blockIdx.x * pages_each;
    // Blocks that have no page have no part in it.
    int used = (query / PAGE - first_page + pages_each) / pages_each;
    if ((int)blockIdx.x >= used) return;
    bool has_new = page <= query / PAGE && query / PAGE < page + pages_each;
    int key = max(first_key, page * PAGE), end = min(query, (page + pages_each) * PAGE);

    Chunk k_chunks[N], v_chunks[N];
    auto load = [&]() {
#pragma unroll
        for (int n = 0; n < N; n++) {
            int own = min(key + n * AT_ONCE + slot, end - 1);
            i64 at = (((i64)place[1 + own / PAGE] * hkv + kv_head) * PAGE + own % PAGE) * D + channel;
            k_chunks[n] = *(const Chunk*)(keys + at);
            v_chunks[n] = *(const Chunk*)(values + at);
        }
    };
    // What earlier steps wrote is there already.
    if (key < end) load();
    wait_for_earlier();

    // A warp for a head: rotated by the position, then normalised.
    i64 new_at = has_new ? (((i64)place[1 + query / PAGE] * hkv + kv_head) * PAGE + query % PAGE) * D : 0;
    bool keeps = has_new && blockIdx.y % parts == 0;
    for (int i = warp; i <= HEADS; i += DECODE_WARPS) {
        bool is_key = i == HEADS;
        const float* from = is_key ? k + (row * hkv + kv_head) * D : q + (row * h + head + (i < heads ? i : 0)) * D;
        const int PAIRS = D / 64;  // of a lane
        float y1[PAIRS], y2[PAIRS], sum = 0.0f;
#pragma unroll
        for (int p = 0; p < PAIRS; p++) {
            int j = lane + 32 * p;
            float a = from[j], b = from[j + D / 2];
            float c = cosine[(i64)query * (D / 2) + j], s = sine[(i64)query * (D / 2) + j];
            y1[p] = a * c + b * s;
            y2[p] = b * c - a * s;
            sum += y1[p] * y1[p] + y2[p] * y2[p];
        }
        float r = qk_scale / sqrtf(warp_sum(sum) / D + eps);
#pragma unroll
        for (int p = 0; p < PAIRS; p++) {
            int j = lane + 32 * p;
            C narrow[2];
            put(&narrow[0], r * y1[p]);
            put(&narrow[1], r * y2[p]);
            // The key as the cache has it.
            heads_of[i * D + j] = is_key ? to_float(narrow[0]) : r * y1[p] * (scale * LOG2_E);
            heads_of[i * D + j + D / 2] = is_key ? to_float(narrow[1]) : r * y2[p] * (scale * LOG2_E);
            if (is_key && keeps) {
                keys[new_at + j] = narrow[0];
                keys[new_at + j + D / 2] = narrow[1];
            }
        }
    }
    const float* new_v = v + (row * hkv + kv_head) * D;
    if (keeps && threadIdx.x < D) put(values + new_at + threadIdx.x, new_v[threadIdx.x]);
    __syncthreads();

    float own_q[HEADS][V];
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
#pragma unroll
        for (int j = 0; j < V; j++) own_q[i][j] = heads_of[i * D + channel + j];
    }
    Partial<V> sums[HEADS];
    while (key < end) {
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
        key += N * AT_ONCE;
        if (key < end) load();
#pragma unroll
        for (int i = 0; i < HEADS; i++) sums[i].add(score[i], value);
    }
    if (has_new && warp == 0) {
        float value[1][V];
#pragma unroll
        for (int j = 0; j < V; j++) {
            C narrow;
            put(&narrow, new_v[channel + j]);
            value[0][j] = to_float(narrow);
        }
#pragma unroll
        for (int i = 0; i < HEADS; i++) {
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < V; j++) sum += own_q[i][j] * heads_of[HEADS * D + channel + j];
#pragma unroll
            for (int mask = LANES / 2; mask > 0; mask >>= 1) sum += shfl_xor(sum, mask);
            float score[1] = {slot == 0 ? sum : -INFINITY};
            sums[i].add(score, value);
        }
    }

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
    float* to = out + (row * h + head) * D;
    i64 records = (row * h + head) * gridDim.x;
    for (int i = threadIdx.x; i < heads * D; i += DECODE_WARPS * 32) {
        int own_head = i / D, own_channel = i % D;
        Total total = add_partials(space + own_head * RECORD, DECODE_WARPS, HEADS * RECORD, D, own_channel);
        if (used == 1) {
            to[i] = total.channel / total.sum;
            continue;
        }
        float* record = partial + (records + (i64)own_head * gridDim.x + blockIdx.x) * RECORD;
        record[own_channel] = total.channel;
        if (own_channel == 0) record[D] = total.maximum, record[D + 1] = total.sum;
    }
    if (used == 1) return;
    // The block that arrives last finds the records of all others.
    int* ticket = arrived + row * gridDim.y + blockIdx.y;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *last = atomicAdd(ticket, 1) == used - 1;
    __syncthreads();
    if (!*last) return;
    __threadfence();
    if (threadIdx.x == 0) *ticket = 0;
    for (int i = threadIdx.x; i < heads * D; i += DECODE_WARPS * 32) {
        const float* record = partial + (records + (i64)(i / D) * gridDim.x) * RECORD;
        Total total = add_partials(record, used, RECORD, D, i % D);
        to[i] = total.channel / total.sum;
    }
}

#define ATTENTION_STEP(C, TYPE, D, HEADS)                                                                          \
    extern "C" __global__ void __launch_bounds__(128) attention_step_##TYPE##_##D##_##HEADS(                       \
        float* out, float* partial, int* arrived, const float* q, const float* k, const float* v, C* keys,         \
        C* values, const float* __restrict__ cosine, const float* __restrict__ sine, const int* places, int pages, \
        int h, int hkv, int window, float scale, float qk_scale, float eps) {                                      \
        attention_step<C, D, HEADS>(out, partial, arrived, q, k, v, keys, values, cosine, sine, places, pages, h,  \
                                    hkv, window, scale, qk_scale, eps);                                            \
    }                                                                                                              \
    KERNELS(attention_step_##TYPE##_##D##_##HEADS)

ATTENTION_STEP(float, f32, 64, 1)
ATTENTION_STEP(float, f32, 64, 4)
ATTENTION_STEP(float, f32, 128, 1)
ATTENTION_STEP(float, f32, 128, 4)
ATTENTION_STEP(bf16, bf16, 64, 1)
ATTENTION_STEP(bf16, bf16, 64, 4)
ATTENTION_STEP(bf16, bf16, 128, 1)
ATTENTION_STEP(bf16, bf16, 128, 4)
