// Attention on Hopper's tensor cores (wgmma), for heads of 128 channels in bf16.
//
// The same mathematics, arguments and grids as the kernels of `attention.cu`; other targets than sm_90a get
// kernels without a body, which must not be launched.
//
//   kernel                           grid                     block  shared bytes
//   attention_forward_wgmma_128      (ceil(T / 128), H, B)    256    163840
//   attention_backward_kv_wgmma_128  (ceil(T / 128), Hkv, B)  256    198656
//   attention_backward_q_wgmma_128   (ceil(T / 128), H, B)    256    196608
//
// Two warpgroups have 64 rows (keys or queries) of a block each. In the backward, tiles of 64 of the others pass
// through four stages of shared memory: two are on their way while one is worked on, and products of the one
// before, which a warpgroup has not yet waited for, still read the fourth.
#include "wgmma.cuh"
#include "attention_forward.cuh"

#ifdef HAS_WGMMA

namespace hopper {

const int THREADS = 2 * WARPGROUP;
const int ROWS = 128;    // of a block
const int OWN = 64;      // rows of a warpgroup
const int COLUMNS = 64;  // keys or queries of a tile
const int STAGES = 4;
const unsigned ROWS_TILE = ROWS * TILE_CHANNELS * 2, COLUMNS_TILE = COLUMNS * TILE_CHANNELS * 2;

typedef float Scores[COLUMNS / 8][4];         // a lane's, of 64 x 64
typedef float Sums[1][TILE_CHANNELS / 8][4];  // a lane's, of 64 x 128
typedef unsigned Weights[COLUMNS / 16][4];    // scores as the A of a product
struct __align__(8) Two { float x[2]; };

// The row of a lane's `e`-th accumulator among the warpgroup's 64, and the column of the `n`-th four.
__device__ __forceinline__ int row_of(int e) {
    return threadIdx.x % WARPGROUP / 32 * 16 + threadIdx.x % 32 / 4 + e / 2 * 8;
}
__device__ __forceinline__ int column_of(int n, int e) { return n * 8 + threadIdx.x % 4 * 2 + e % 2; }

// Weights of keys that the query does not see become zero: rows are keys from `row` on and columns queries
// from `column` on, or the other way round.
template <bool ROWS_ARE_KEYS>
__device__ __forceinline__ void mask_weights(Scores& p, int row, int column, int window) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int at_row = row + row_of(e), at_column = column + column_of(n, e);
            int key = ROWS_ARE_KEYS ? at_row : at_column, query = ROWS_ARE_KEYS ? at_column : at_row;
            if (key > query || key < query - window) p[n][e] = 0.0f;
        }
    }
}

// Stores the warpgroups' rows times `factor`, through `space`: 16 rows of the tile there for each warp.
__device__ __forceinline__ void store_sums(bf16* to, i64 stride, int real_rows, const Sums& sums, float factor,
                                           unsigned char* space) {
    int first = threadIdx.x / 32 * 16;
    float factors[1][2] = {{factor, factor}};
    store_rows<TILE_CHANNELS, 1>(to + first * stride, stride, real_rows - first, sums, factors,
                                 space + first * TILE_CHANNELS * 2);
}

// ---------------------------------------------------------------------------------------------
// Gradients of keys and values
// ---------------------------------------------------------------------------------------------
//
// Scores are transposed: rows are the warpgroup's 64 keys, columns the 64 queries of a tile. So weights become
// the left operand of dv += p^T dout without leaving their registers.

// Scores to weights exp(scale q·k - lse); `lse` are the tile's, in shared memory.
__device__ __forceinline__ void weigh_by_column(Scores& s, const float* lse, float scale2) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
        Two base = *(const Two*)(lse + column_of(n, 0));
#pragma unroll
        for (int e = 0; e < 4; e++) s[n][e] = exp2_fast(s[n][e] * scale2 - base.x[e % 2] * LOG2_E);
    }
}

// p becomes the gradient of the scores, p (dp - delta); `delta` are the tile's, in shared memory.
__device__ __forceinline__ void gradient_by_column(Scores& p, const Scores& dp, const float* delta) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
        Two base = *(const Two*)(delta + column_of(n, 0));
#pragma unroll
        for (int e = 0; e < 4; e++) p[n][e] *= dp[n][e] - base.x[e % 2];
    }
}

// Where a stage's 64 lse and 64 delta lie: after all the tiles, since those begin at multiples of 1024 bytes.
__device__ __forceinline__ unsigned numbers_at(unsigned stage) {
    return 2 * ROWS_TILE + STAGES * 2 * COLUMNS_TILE + stage * 2 * COLUMNS * 4;
}

__device__ __forceinline__ void backward_kv(bf16* dk, bf16* dv, const bf16* dout, const float* lse, const float* delta,
                                            const bf16* q, const bf16* k, const bf16* v, int t, int h, int hkv,
                                            int window, float scale) {
    SHARED
    const unsigned k_tile = shared_address(shared), v_tile = k_tile + ROWS_TILE, stages = v_tile + ROWS_TILE;
    window = min(window, t);
    float scale2 = scale * LOG2_E;

    // Early keys are seen by the most queries: they go first.
    int first_key = blockIdx.x * ROWS, group = h / hkv;
    i64 row = (i64)blockIdx.z * t;
    q += row * h * TILE_CHANNELS, dout += row * h * TILE_CHANNELS, lse += row * h, delta += row * h;
    i64 kv_at = ((row + first_key) * hkv + blockIdx.y) * TILE_CHANNELS, kv_stride = (i64)hkv * TILE_CHANNELS;
    load_panels<ROWS, THREADS>(k_tile, k + kv_at, kv_stride, t - first_key);
    load_panels<ROWS, THREADS>(v_tile, v + kv_at, kv_stride, t - first_key);

    // The steps: each tile of queries that see these keys, for each head that reads them.
    int first_tile = first_key / COLUMNS;
    int last_tile = min((t - 1) / COLUMNS, (first_key + ROWS - 1 + window) / COLUMNS);
    int steps = (last_tile - first_tile + 1) * group;
    // What the first threads copy besides: one number of a query, zero for queries that are not there,
    // which give nothing since their dout is zero.
    int own_query = threadIdx.x % COLUMNS;
    const float* own_numbers = (threadIdx.x < COLUMNS ? lse : delta) + (i64)own_query * h;
    int next_tile = first_tile, next_head = blockIdx.y * group;
    auto load = [&](int step) {
        if (step >= steps) return;
        int first = next_tile * COLUMNS, real = t - first;
        i64 at = (i64)first * h + next_head;
        unsigned stage = step % STAGES, to = stages + stage * 2 * COLUMNS_TILE;
        load_panels<COLUMNS, THREADS>(to, q + at * TILE_CHANNELS, h * TILE_CHANNELS, real);
        load_panels<COLUMNS, THREADS>(to + COLUMNS_TILE, dout + at * TILE_CHANNELS, h * TILE_CHANNELS, real);
        if (threadIdx.x < 2 * COLUMNS) {
            copy_async4(k_tile + numbers_at(stage) + threadIdx.x * 4, own_numbers + at, own_query < real);
        }
        if (++next_tile > last_tile) next_tile = first_tile, next_head++;
    };
    load(0);
    commit_copies();
    load(1);
    commit_copies();

    int own_row = shfl((int)threadIdx.x / WARPGROUP, 0) * OWN, key = first_key + own_row;
    Sums acc_k, acc_v;
    Scores p, dp;
    Weights p_left, ds_left;
    bool started = false;  // the sums, which every row that is stored adds to

#pragma unroll 1
    for (int step = 0, tile = first_tile; step < steps; step++) {
        wait_copies<1>();
        fence_async_proxy();
        __syncthreads();
        load(step + 2);
        commit_copies();
        int query = tile * COLUMNS;
        if (++tile > last_tile) tile = first_tile;

        if (!any_seen(key, key + OWN - 1, query, query + COLUMNS - 1, window)) {
            // The stage that products under way read is written after the next barrier.
            wgmma_wait<0>();
            continue;
        }
        unsigned q_tile = stages + step % STAGES * 2 * COLUMNS_TILE, dout_tile = q_tile + COLUMNS_TILE;
        const float* numbers = (const float*)(shared + numbers_at(step % STAGES));
        wgmma_fence();
        multiply_channels<ROWS>(p, k_tile + own_row * PANEL_ROW, q_tile);
        wgmma_commit();
        multiply_channels<ROWS>(dp, v_tile + own_row * PANEL_ROW, dout_tile);
        wgmma_commit();

        wgmma_wait<1>();
        settle(p);
        weigh_by_column(p, numbers, scale2);
        if (!all_seen(key, key + OWN - 1, query, query + COLUMNS - 1, window)) {
            mask_weights<true>(p, key, query, window);
        }
        pack_left(p_left, p);
        wgmma_fence();
        multiply_rows(acc_v[0], p_left, dout_tile, started);
        wgmma_commit();

        wgmma_wait<1>();
        settle(dp);
        gradient_by_column(p, dp, numbers + COLUMNS);
        pack_left(ds_left, p);
        wgmma_fence();
        multiply_rows(acc_k[0], ds_left, q_tile, started);
        wgmma_commit();
        started = true;
    }
    wgmma_wait<0>();
    settle(acc_k[0]);
    settle(acc_v[0]);
    // Nobody reads the tiles any more.
    __syncthreads();
    store_sums(dk + kv_at, kv_stride, t - first_key, acc_k, scale, shared);
    store_sums(dv + kv_at, kv_stride, t - first_key, acc_v, 1.0f, shared + ROWS_TILE);
}

// ---------------------------------------------------------------------------------------------
// Gradient of queries
// ---------------------------------------------------------------------------------------------

// What rows of queries need: two rows of a lane.
struct RowNumbers { float base[2], delta[2]; };  // lse in powers of two; delta

// Scores of 64 queries against a tile of keys become weights exp(scale q·k - lse),
__device__ __forceinline__ void weigh_by_row(Scores& s, const RowNumbers& rows, float scale2) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) s[n][e] = exp2_fast(s[n][e] * scale2 - rows.base[e / 2]);
    }
}
// and the weights the gradient of the scores, p (dp - delta).
__device__ __forceinline__ void gradient_by_row(Scores& p, const Scores& dp, const RowNumbers& rows) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) p[n][e] *= dp[n][e] - rows.delta[e / 2];
    }
}

__device__ __forceinline__ void backward_q(bf16* dq, const bf16* dout, const float* lse, const float* delta,
                                           const bf16* q, const bf16* k, const bf16* v, int t, int h, int hkv,
                                           int window, float scale) {
    SHARED
    const unsigned q_tile = shared_address(shared), dout_tile = q_tile + ROWS_TILE, stages = dout_tile + ROWS_TILE;
    float scale2 = scale * LOG2_E;

    // Late queries see the most keys: they go first.
    int first_query = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y;
    i64 row = (i64)blockIdx.z * t;
    i64 q_at = ((row + first_query) * h + head) * TILE_CHANNELS, q_stride = (i64)h * TILE_CHANNELS;
    i64 kv_at = (row * hkv + head / (h / hkv)) * TILE_CHANNELS, kv_stride = (i64)hkv * TILE_CHANNELS;
    load_panels<ROWS, THREADS>(q_tile, q + q_at, q_stride, t - first_query);
    load_panels<ROWS, THREADS>(dout_tile, dout + q_at, q_stride, t - first_query);

    int first_tile = max(first_query - window, 0) / COLUMNS;
    int last_tile = min(first_query + ROWS - 1, t - 1) / COLUMNS;
    auto load = [&](int tile) {
        if (tile > last_tile) return;
        i64 at = kv_at + (i64)tile * COLUMNS * kv_stride;
        int real = t - tile * COLUMNS;
        unsigned to = stages + tile % STAGES * 2 * COLUMNS_TILE;
        load_panels<COLUMNS, THREADS>(to, k + at, kv_stride, real);
        load_panels<COLUMNS, THREADS>(to + COLUMNS_TILE, v + at, kv_stride, real);
    };
    load(first_tile);
    commit_copies();
    load(first_tile + 1);
    commit_copies();

    int own_row = shfl((int)threadIdx.x / WARPGROUP, 0) * OWN, query = first_query + own_row;
    RowNumbers numbers;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int at = query + row_of(2 * half);
        i64 from = (row + at) * h + head;
        numbers.base[half] = at < t ? lse[from] * LOG2_E : 0.0f;
        numbers.delta[half] = at < t ? delta[from] : 0.0f;
    }
    wait_copies<1>();
    __syncthreads();
    // The warpgroup's queries stay in registers.
    unsigned q_left[TILE_STEPS][4], dout_left[TILE_STEPS][4];
    load_left<ROWS>(q_left, q_tile, own_row);
    load_left<ROWS>(dout_left, dout_tile, own_row);
    Sums acc;
    Scores p, dp;
    Weights ds_left;
    bool started = false;  // the sums, which every row that is stored adds to

#pragma unroll 1
    for (int tile = first_tile; tile <= last_tile; tile++) {
        wait_copies<1>();
        fence_async_proxy();
        __syncthreads();
        load(tile + 2);
        commit_copies();

        int key = tile * COLUMNS;
        // Only the first or the last tile: the stage that products under way read is not written any more.
        if (!any_seen(key, key + COLUMNS - 1, query, query + OWN - 1, window)) continue;
        unsigned k_tile = stages + tile % STAGES * 2 * COLUMNS_TILE, v_tile = k_tile + COLUMNS_TILE;
        wgmma_fence();
        multiply_channels(p, q_left, k_tile);
        wgmma_commit();
        multiply_channels(dp, dout_left, v_tile);
        wgmma_commit();

        wgmma_wait<1>();
        settle(p);
        weigh_by_row(p, numbers, scale2);
        if (!all_seen(key, key + COLUMNS - 1, query, query + OWN - 1, window)) {
            mask_weights<false>(p, query, key, window);
        }
        wgmma_wait<0>();
        settle(dp);
        gradient_by_row(p, dp, numbers);
        pack_left(ds_left, p);
        wgmma_fence();
        multiply_rows(acc[0], ds_left, k_tile, started);
        wgmma_commit();
        started = true;
    }
    wgmma_wait<0>();
    settle(acc[0]);
    // The tile of queries has been in registers since before the loop: its place is free.
    store_sums(dq + q_at, q_stride, t - first_query, acc, scale, shared);
}

// ---------------------------------------------------------------------------------------------
// Forward
// ---------------------------------------------------------------------------------------------
//
// Each warpgroup has 64 queries and goes through tiles of 128 keys. While the tensor cores multiply the weights
// of a tile by its values, the scores of the next tile, given before, become weights. So keys run one tile
// ahead of values, in two stages each.

const int KEYS_TILE = 128;  // keys of a tile
const unsigned KEYS_BYTES = KEYS_TILE * TILE_CHANNELS * 2;

typedef float WideScores[KEYS_TILE / 8][4];      // a lane's, of 64 x 128
typedef unsigned WideWeights[KEYS_TILE / 16][4];

// Of a lane's two rows: the largest score so far, and the lane's own part of the sum of weights.
struct Softmax { float maximum[2], sum[2]; };

// Scores that the query does not see: -inf.
__device__ __forceinline__ void mask_wide(WideScores& s, int query, int key, int window) {
#pragma unroll
    for (int n = 0; n < KEYS_TILE / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int at_query = query + row_of(e), at_key = key + column_of(n, e);
            if (at_key > at_query || at_key < at_query - window) s[n][e] = -INFINITY;
        }
    }
}

// Scores of one row (the `half` of the lane's) become weights 2^(scale2 (s - maximum)). Returns the factor
// that takes sums of earlier weights to the new maximum.
__device__ __forceinline__ float weigh_half(WideScores& s, Softmax& rows, int half, float scale2) {
    float top = rows.maximum[half];
#pragma unroll
    for (int n = 0; n < KEYS_TILE / 8; n++) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    top = fmaxf(top, shfl_xor(top, 1));
    top = fmaxf(top, shfl_xor(top, 2));
    // Nothing seen yet: any finite value gives weights of zero.
    float base = top == -INFINITY ? 0.0f : top * scale2;
    float rescale = exp2_fast(rows.maximum[half] * scale2 - base), sum = 0.0f;
    rows.maximum[half] = top;
#pragma unroll
    for (int n = 0; n < KEYS_TILE / 8; n++) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; e++) {
            s[n][e] = exp2_fast(s[n][e] * scale2 - base);
            sum += s[n][e];
        }
    }
    rows.sum[half] = rows.sum[half] * rescale + sum;
    return rescale;
}

__device__ __forceinline__ void rescale_sums(Sums& acc, const float (&factor)[2]) {
#pragma unroll
    for (int n = 0; n < TILE_CHANNELS / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) acc[0][n][e] *= factor[e / 2];
    }
}

// Divides the sums by those of weights, and stores them and lse. `to` and `lse` are the block's first row's.
__device__ __forceinline__ void finish(bf16* to, i64 stride, float* lse, int h, int real_rows, Sums& acc,
                                       const Softmax& rows, float scale2, unsigned char* space) {
    int first = threadIdx.x / WARPGROUP * OWN;
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = rows.sum[half];
        total += shfl_xor(total, 1);
        total += shfl_xor(total, 2);
        inverse[half] = 1.0f / total;
        int at = first + row_of(2 * half);
        if (threadIdx.x % 4 == 0 && at < real_rows) {
            lse[(i64)at * h] = (rows.maximum[half] * scale2 + log2f(total)) * LN_2;
        }
    }
    rescale_sums(acc, inverse);
    store_sums(to, stride, real_rows, acc, 1.0f, space);
}

__device__ __forceinline__ void forward(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, int t,
                                        int h, int hkv, int window, float scale) {
    SHARED
    const unsigned q_tile = shared_address(shared), k_tiles = q_tile + ROWS_TILE, v_tiles = k_tiles + 2 * KEYS_BYTES;
    float scale2 = scale * LOG2_E;

    // Late queries see the most keys: they go first.
    int first_query = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y;
    i64 row = (i64)blockIdx.z * t;
    i64 q_at = ((row + first_query) * h + head) * TILE_CHANNELS, q_stride = (i64)h * TILE_CHANNELS;
    i64 kv_at = (row * hkv + head / (h / hkv)) * TILE_CHANNELS, kv_stride = (i64)hkv * TILE_CHANNELS;
    int first_tile = max(first_query - window, 0) / KEYS_TILE, last_tile = first_query / KEYS_TILE;
    static_assert(KEYS_TILE == ROWS, "the last tile is that of the queries themselves");

    // Tiles of even and odd numbers have a stage each.
    auto load = [&](unsigned stages, const bf16* from, int tile) {
        if (tile > last_tile) return;
        unsigned to = stages + tile % 2 * KEYS_BYTES;
        i64 at = kv_at + (i64)tile * KEYS_TILE * kv_stride;
        load_panels<KEYS_TILE, THREADS>(to, from + at, kv_stride, t - tile * KEYS_TILE);
    };
    load_panels<ROWS, THREADS>(q_tile, q + q_at, q_stride, t - first_query);
    load(k_tiles, k, first_tile);
    commit_copies();
    load(k_tiles, k, first_tile + 1);
    load(v_tiles, v, first_tile);
    commit_copies();

    int own_row = shfl((int)threadIdx.x / WARPGROUP, 0) * OWN, query = first_query + own_row;
    unsigned q_rows = q_tile + own_row * PANEL_ROW;
    Sums acc;
    WideScores s;
    WideWeights p_left;
    Softmax rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    float rescale[2];
    auto weigh = [&](int tile) {
        int key = tile * KEYS_TILE;
        if (!all_seen(key, key + KEYS_TILE - 1, query, query + OWN - 1, window)) mask_wide(s, query, key, window);
        rescale[0] = weigh_half(s, rows, 0, scale2);
        rescale[1] = weigh_half(s, rows, 1, scale2);
    };

    wait_copies<1>();
    fence_async_proxy();
    __syncthreads();
    wgmma_fence();
    multiply_channels<ROWS>(s, q_rows, k_tiles + first_tile % 2 * KEYS_BYTES);
    wgmma_commit();
    wgmma_wait<0>();
    settle(s);
    weigh(first_tile);
    pack_left(p_left, s);

    bool started = false;  // the sums
#pragma unroll 1
    for (int tile = first_tile; tile < last_tile; tile++) {
        wait_copies<0>();
        fence_async_proxy();
        __syncthreads();
        load(k_tiles, k, tile + 2);
        load(v_tiles, v, tile + 1);
        commit_copies();

        wgmma_fence();
        multiply_channels<ROWS>(s, q_rows, k_tiles + (tile + 1) % 2 * KEYS_BYTES);
        wgmma_commit();
        multiply_rows(acc[0], p_left, v_tiles + tile % 2 * KEYS_BYTES, started);
        wgmma_commit();
        started = true;

        wgmma_wait<1>();
        settle(s);
        weigh(tile + 1);
        // Without this the assembler waits first, and the tensor cores are idle while weights are computed.
        wait_for_value(rows.sum[0] + rows.sum[1]);
        wgmma_wait<0>();
        settle(acc[0]);
        pack_left(p_left, s);
        rescale_sums(acc, rescale);
    }
    wait_copies<0>();
    fence_async_proxy();
    __syncthreads();
    wgmma_fence();
    multiply_rows(acc[0], p_left, v_tiles + last_tile % 2 * KEYS_BYTES, started);
    wgmma_commit();
    wgmma_wait<0>();
    settle(acc[0]);
    // All scores were there before the last barrier: nobody reads the tile of queries any more.
    finish(out + q_at, q_stride, lse + (row + first_query) * h + head, h, t - first_query, acc, rows, scale2, shared);
}

}  // namespace hopper

#endif

extern "C" __global__ void __launch_bounds__(256, 1)
    attention_forward_wgmma_128(bf16* __restrict__ out, float* __restrict__ lse, const bf16* __restrict__ q,
                                const bf16* __restrict__ k, const bf16* __restrict__ v, int t, int h, int hkv,
                                int window, float scale) {
#ifdef HAS_WGMMA
    hopper::forward(out, lse, q, k, v, t, h, hkv, window, scale);
#endif
}
extern "C" __global__ void __launch_bounds__(256, 1)
    attention_backward_kv_wgmma_128(bf16* __restrict__ dk, bf16* __restrict__ dv, const bf16* __restrict__ dout,
                                    const float* __restrict__ lse, const float* __restrict__ delta,
                                    const bf16* __restrict__ q, const bf16* __restrict__ k,
                                    const bf16* __restrict__ v, int t, int h, int hkv, int window, float scale) {
#ifdef HAS_WGMMA
    hopper::backward_kv(dk, dv, dout, lse, delta, q, k, v, t, h, hkv, window, scale);
#endif
}
extern "C" __global__ void __launch_bounds__(256, 1)
    attention_backward_q_wgmma_128(bf16* __restrict__ dq, const bf16* __restrict__ dout, const float* __restrict__ lse,
                                   const float* __restrict__ delta, const bf16* __restrict__ q,
                                   const bf16* __restrict__ k, const bf16* __restrict__ v, int t, int h, int hkv,
                                   int window, float scale) {
#ifdef HAS_WGMMA
    hopper::backward_q(dq, dout, lse, delta, q, k, v, t, h, hkv, window, scale);
#endif
}

KERNELS(attention_forward_wgmma_128, attention_backward_kv_wgmma_128, attention_backward_q_wgmma_128)
