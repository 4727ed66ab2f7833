// Flash attention, one block's part: 64 M queries of a head against the keys they see.
//
// Scores stay in registers: tile by tile of 64 keys, with the running maximum and sum of each query
// (arXiv:2205.14135, arXiv:2307.08691). Each of the 4 warps has 16 M queries. With M = 2, what it reads of
// a tile serves two products, which is faster where there are enough queries; M = 1 makes more blocks.
#pragma once
#include "mma.cuh"

const int FORWARD_THREADS = 128;
const int KEYS = 64;  // of a tile; as many as the positions of a cache's page
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// Keys and values of a head, one after the other, `stride` elements apart.
struct DenseKeys {
    const bf16 *k, *v;
    i64 stride;
    __device__ __forceinline__ i64 offset(int tile) const { return (i64)tile * KEYS * stride; }
};
// Keys and values of a head in pages: those of tile i begin at page_stride * pages[i].
struct PagedKeys {
    const bf16 *k, *v;
    i64 stride;
    const int* pages;
    i64 page_stride;
    __device__ __forceinline__ i64 offset(int tile) const { return pages[tile] * page_stride; }
};

// Queries of a head: `count` of them, `stride` elements apart, the first of which stands at position `start`.
struct Queries {
    const bf16* q;
    bf16* out;
    float* lse;  // null, or `lse_stride` elements apart
    i64 stride;
    int lse_stride, count, start;
};

// True if a key of `key ..= last_key` is seen by a query of `query ..= last_query`.
__device__ __forceinline__ bool any_seen(int key, int last_key, int query, int last_query, int window) {
    return key <= last_query && last_key >= query - window;
}
// True if all of them are seen by each.
__device__ __forceinline__ bool all_seen(int key, int last_key, int query, int last_query, int window) {
    return last_key <= query && key >= last_query - window;
}

// A lane's scores: rows are queries from `query` on, columns keys from `key` on. What is not seen: -inf.
template <int M>
__device__ __forceinline__ void mask_scores(float (&s)[M][KEYS / 8][4], int query, int key, int window) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int at_query = query + m * 16 + lane / 4 + e / 2 * 8;
                int at_key = key + n * 8 + lane % 4 * 2 + e % 2;
                if (at_key > at_query || at_key < at_query - window) s[m][n][e] = -INFINITY;
            }
        }
    }
}

// One row of scores (the `half` of a lane's rows) becomes weights 2^(scale2 (s - maximum)); `acc` and
// `sum` are rescaled to the new maximum. A row's columns lie in 4 lanes; `sum` stays each lane's own.
template <int D>
__device__ __forceinline__ void weigh_row(float (&s)[KEYS / 8][4], float (&acc)[D / 8][4], float& maximum, float& sum,
                                          int half, float scale2) {
    float top = maximum;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    top = fmaxf(top, shfl_xor(top, 1));
    top = fmaxf(top, shfl_xor(top, 2));
    // Nothing seen yet: any finite value gives weights of zero.
    float base = top == -INFINITY ? 0.0f : top * scale2;
    float rescale = exp2_fast(maximum * scale2 - base);
    maximum = top;
    sum *= rescale;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; e++) {
            s[n][e] = exp2_fast(s[n][e] * scale2 - base);
            sum += s[n][e];
        }
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        acc[n][2 * half] *= rescale;
        acc[n][2 * half + 1] *= rescale;
    }
}

// Divides by the sums and stores the warp's rows, which are the queries from `row` on.
template <int D, int M>
__device__ __forceinline__ void finish_rows(const Queries& queries, int row, const float (&acc)[M][D / 8][4],
                                            const float (&maximum)[M][2], const float (&sum)[M][2], float scale2,
                                            unsigned char* space) {
    int lane = threadIdx.x % 32;
    float inverse[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[m][half];
            total += shfl_xor(total, 1);
            total += shfl_xor(total, 2);
            inverse[m][half] = 1.0f / total;
            int at = row + m * 16 + half * 8 + lane / 4;
            if (queries.lse != nullptr && lane % 4 == 0 && at < queries.count) {
                float lse2 = maximum[m][half] * scale2 + log2f(total);
                queries.lse[(i64)at * queries.lse_stride] = lse2 * LN_2;
            }
        }
    }
    store_rows<D, M>(queries.out + row * queries.stride, queries.stride, queries.count - row, acc, inverse, space);
}

// The block's 64 M queries from `first` on. Positions are counted from the first query of the row: then few
// numbers depend on `start`, and the others need no register of each thread.
template <int D, int M, class Keys>
__device__ __forceinline__ void attend_block(const Queries& queries, const Keys& keys, int first, int window,
                                             float scale) {
    SHARED
    const int ROWS = 64 * M, WARP_ROWS = 16 * M;
    const unsigned TILE = KEYS * D * 2;
    const unsigned q_tile = shared_address(shared), stages = q_tile + ROWS * D * 2;
    float scale2 = scale * LOG2_E;

    int last = min(first + ROWS, queries.count) - 1;
    int tile = max(queries.start + first - window, 0) / KEYS;
    int key = tile * KEYS - queries.start;  // the tile's first
    auto load = [&](int which, int first_key, unsigned stage) {
        i64 offset = keys.offset(which);
        int real = queries.count - first_key;
        load_tile<D, KEYS, FORWARD_THREADS>(stage, keys.k + offset, keys.stride, real);
        load_tile<D, KEYS, FORWARD_THREADS>(stage + TILE, keys.v + offset, keys.stride, real);
    };
    load_tile<D, ROWS, FORWARD_THREADS>(q_tile, queries.q + first * queries.stride, queries.stride,
                                        queries.count - first);
    load(tile, key, stages);
    commit_copies();

    int warp_row = threadIdx.x / 32 * WARP_ROWS;
    int query = first + warp_row;
    unsigned q_rows = q_tile + warp_row * D * 2;
    Reader left = left_reader<D>(), right = right_reader<D>();
    float acc[M][D / 8][4];
    clear(acc);
    float maximum[M][2], sum[M][2] = {};
#pragma unroll
    for (int m = 0; m < M; m++) maximum[m][0] = maximum[m][1] = -INFINITY;

    for (unsigned turn = 0; key <= last; tile++, key += KEYS, turn ^= 1) {
        // After this barrier the tile is there for all, and nobody reads the other stage any more.
        wait_copies<0>();
        __syncthreads();
        if (key + KEYS <= last) load(tile + 1, key + KEYS, stages + (turn ^ 1) * 2 * TILE);
        commit_copies();

        if (!any_seen(key, key + KEYS - 1, query, query + WARP_ROWS - 1, window)) continue;
        unsigned k_tile = stages + turn * 2 * TILE, v_tile = k_tile + TILE;
        float s[M][KEYS / 8][4];
        clear(s);
        multiply_rows<D, M, KEYS / 16>(s, q_rows, k_tile, left, right);
        if (!all_seen(key, key + KEYS - 1, query, query + WARP_ROWS - 1, window)) mask_scores(s, query, key, window);
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                weigh_row<D>(s[m], acc[m], maximum[m][half], sum[m][half], half, scale2);
            }
        }
        multiply_weights<D, M, KEYS / 16>(acc, s, v_tile, left);
    }
    finish_rows<D, M>(queries, query, acc, maximum, sum, scale2, shared + warp_row * D * 2);
}
