// Attention of one row: a phase of program.cu. A block has a head of the query and some of the pages it sees: sums
// of values weighed by 2^score, and of the weights, which the product after it adds up.
#pragma once
#include "program.cuh"

#if defined(NANOCHAT_SHIM) || __CUDA_ARCH__ >= 900

// A head of the query, scaled, or the new key as the cache has it, by a warp: rotated by the position, then
// normalised.
template <int D, bool IS_KEY> __device__ __forceinline__ void rotate(
    float* to, bf16* cache, const Phase& p, int query, const u64* from, unsigned tag) {
    const int PAIRS = D / 64;
    int lane = thread_here() % 32;
    u64 asked[PAIRS][2];
    float y1[PAIRS], y2[PAIRS], c[PAIRS], s[PAIRS], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        asked[i][0] = get_bits(from + lane + 32 * i);
        asked[i][1] = get_bits(from + lane + 32 * i + D / 2);
        c[i] = p.cosine[(i64)query * (D / 2) + lane + 32 * i];
        s[i] = p.sine[(i64)query * (D / 2) + lane + 32 * i];
    }
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        int j = lane + 32 * i;
        float a = wait_packet(asked[i][0], from + j, tag), b = wait_packet(asked[i][1], from + j + D / 2, tag);
        y1[i] = a * c[i] + b * s[i];
        y2[i] = b * c[i] - a * s[i];
        sum += y1[i] * y1[i] + y2[i] * y2[i];
    }
    float r = p.qk_scale * rsqrtf(warp_sum(sum) / D + p.eps), scale = IS_KEY ? 1.0f : p.scale * LOG2_E;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        int j = lane + 32 * i;
        bf16 one = to_bf16(r * y1[i]), two = to_bf16(r * y2[i]);
        to[j] = IS_KEY ? to_float(one) : r * y1[i] * scale;
        to[j + D / 2] = IS_KEY ? to_float(two) : r * y2[i] * scale;
        if (IS_KEY && cache) cache[j] = one, cache[j + D / 2] = two;
    }
}

// A block has a head of the query and some of the pages.
template <int D> __device__ __forceinline__ void attend(
    Space& space, const Phase& p, const Position& at, int phase) {
    const int V = 8, LANES = D / V, AT_ONCE = PROGRAM_THREADS / LANES, N = (PAGE + AT_ONCE - 1) / AT_ONCE;
    int thread = thread_here(), lane = thread % 32, warp = thread / 32;
    int channel = lane % LANES * V, slot = thread / LANES;
    int query = at.query, group = p.h / p.hkv, hkv = p.hkv;
    unsigned tag = at.base + p.in.x_phase;
    Splits splits(query, p.window);
    float *own_query = space.heads[0], *new_key = space.heads[1], *new_value = space.heads[2];
#pragma unroll 1
    for (int item = blockIdx.x; item < p.h * MOST_SPLITS; item += gridDim.x) {
        int head = item / MOST_SPLITS, split = item % MOST_SPLITS, kv_head = group == 1 ? head : head / group;
        if (split >= splits.used) continue;
        int page = splits.first_page + split * splits.each;
        bool has_new = split == splits.used - 1, keeps = has_new && kv_head * group == head;
        int key = max(splits.first_key, page * PAGE), end = min(query, (page + splits.each) * PAGE);
        Chunk k_chunks[N], v_chunks[N];
        auto load = [&]() {
#pragma unroll
            for (int n = 0; n < N; n++) {
                int own = min(key + n * AT_ONCE + slot, end - 1);
                i64 from = (((i64)p.places[1 + own / PAGE] * hkv + kv_head) * PAGE + own % PAGE) * D + channel;
                k_chunks[n] = load_past_l1((const Chunk*)(p.keys + from));
                v_chunks[n] = load_past_l1((const Chunk*)(p.values + from));
            }
        };
        if (key < end) load();
        if (warp == 0) rotate<D, false>(own_query, nullptr, p, query, p.in.x + head * D, tag);
        if (has_new && (warp == 1 || warp == 2)) {
            i64 new_at = (((i64)p.places[1 + query / PAGE] * hkv + kv_head) * PAGE + query % PAGE) * D;
            const u64* from = p.in.x + (p.h + (warp == 2 ? hkv : 0) + kv_head) * D;
            if (warp == 1) rotate<D, true>(new_key, keeps ? p.keys + new_at : nullptr, p, query, from, tag);
            for (int j = lane; warp == 2 && j < D; j += 32) {
                bf16 narrow = to_bf16(wait_packet(get_bits(from + j), from + j, tag));
                new_value[j] = to_float(narrow);
                if (keeps) p.values[new_at + j] = narrow;
            }
        }
        __syncthreads();
        Floats<8> q = Access<8>::get(own_query + channel);
        float acc[V] = {}, sum = 0.0f;
        auto add = [&](const float (&own_key)[V], const float (&value)[V], bool counts) {
            float score = 0.0f;
#pragma unroll
            for (int j = 0; j < V; j++) score += q.x[j] * own_key[j];
#pragma unroll
            for (int mask = LANES / 2; mask > 0; mask >>= 1) score += shfl_xor(score, mask);
            float weight = counts ? exp2_fast(score) : 0.0f;
            sum += weight;
#pragma unroll
            for (int j = 0; j < V; j++) acc[j] += weight * value[j];
        };
#pragma unroll 1
        while (key < end) {
#pragma unroll
            for (int n = 0; n < N; n++) {
                float own_key[V], value[V];
                unpack(k_chunks[n], own_key);
                unpack(v_chunks[n], value);
                // What lies past the end is a copy, or not yet a number: it has no part.
                add(own_key, value, key + n * AT_ONCE + slot < end);
            }
            key += N * AT_ONCE;
            if (key < end) load();
        }
        if (has_new && warp == 0) {
            Floats<8> own_key = Access<8>::get(new_key + channel), value = Access<8>::get(new_value + channel);
            add(own_key.x, value.x, slot == 0);
        }
#pragma unroll
        for (int mask = LANES; mask < 32; mask <<= 1) {
            sum += shfl_xor(sum, mask);
#pragma unroll
            for (int j = 0; j < V; j++) acc[j] += shfl_xor(acc[j], mask);
        }
        float* record = space.records[warp];
        if (lane < LANES) {
            *(Four32*)(record + channel) = {{acc[0], acc[1], acc[2], acc[3]}};
            *(Four32*)(record + channel + 4) = {{acc[4], acc[5], acc[6], acc[7]}};
        }
        if (lane == 0) record[D] = sum;
        __syncthreads();
        if (thread < D + 2) {
            // The last number fills up a pair.
            float total = 0.0f;
            int own = min(thread, D);
#pragma unroll
            for (int i = 0; i < PROGRAM_WARPS; i++) total += space.records[i][own];
            put_packet(p.out + (head * MOST_SPLITS + split) * (D + 2) + thread, total, at.base + phase);
        }
        if (item + (int)gridDim.x < p.h * MOST_SPLITS) __syncthreads();
    }
}
#endif
