// Attention's backward on Hopper's tensor cores (wgmma), for heads of 128 channels in bf16.
//
// The same mathematics, arguments and grids as the kernels of `attention.cu`; other targets than sm_90a get
// kernels without a body, which must not be launched.
//
//   kernel                           grid                     block  shared bytes
//   attention_backward_kv_wgmma_128  (ceil(T / 128), Hkv, B)  256    165376
//   attention_backward_q_wgmma_128   (ceil(T / 128), H, B)    256    163840
//
// Two warpgroups have 64 rows (keys or queries) of a block each. Tiles of 64 of the others pass through three
// stages of shared memory: a tile lands while the one before is worked on, and the products of the one before
// that, which a warpgroup has not yet waited for, still read theirs.
#include "wgmma.cuh"
#include "attention_forward.cuh"

#ifdef HAS_WGMMA

namespace hopper {

const int THREADS = 2 * WARPGROUP;
const int ROWS = 128;  // of a block
const int OWN = 64;    // rows of a warpgroup
const int COLUMNS = 64;  // keys or queries of a tile
const int STAGES = 3;
const unsigned ROWS_TILE = ROWS * TILE_CHANNELS * 2, COLUMNS_TILE = COLUMNS * TILE_CHANNELS * 2;

typedef float Scores[COLUMNS / 8][4];                    // a lane's, of 64 x 64
typedef float Sums[1][TILE_CHANNELS / 8][4];             // a lane's, of 64 x 128
typedef unsigned Weights[COLUMNS / 16][4];               // scores as the A of a product
struct __align__(8) Two { float x[2]; };

__device__ __forceinline__ unsigned next_stage(unsigned stage) { return stage + 1 == STAGES ? 0 : stage + 1; }

// The row of a lane's `e`-th accumulator among the warpgroup's 64, and the column of the `n`-th four.
__device__ __forceinline__ int row_of(int e) {
    return threadIdx.x % WARPGROUP / 32 * 16 + threadIdx.x % 32 / 4 + e / 2 * 8;
}
__device__ __forceinline__ int column_of(int n, int e) { return n * 8 + threadIdx.x % 4 * 2 + e % 2; }

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

// Weights that no query may have become zero.
__device__ __forceinline__ void mask_weights(Scores& p, int key, int query, int window) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int at_key = key + row_of(e), at_query = query + column_of(n, e);
            if (at_key > at_query || at_key < at_query - window) p[n][e] = 0.0f;
        }
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
    int tile = first_tile, head = blockIdx.y * group, last_head = head + group - 1;
    // What the first threads copy besides: one number of a query, zero for queries that are not there,
    // which give nothing since their dout is zero.
    int own_query = threadIdx.x % COLUMNS;
    const float* own_numbers = (threadIdx.x < COLUMNS ? lse : delta) + (i64)own_query * h;
    auto load = [&](int which, int of_head, unsigned stage) {
        int first = which * COLUMNS, real = t - first;
        i64 at = (i64)first * h + of_head;
        unsigned to = stages + stage * 2 * COLUMNS_TILE;
        load_panels<COLUMNS, THREADS>(to, q + at * TILE_CHANNELS, h * TILE_CHANNELS, real);
        load_panels<COLUMNS, THREADS>(to + COLUMNS_TILE, dout + at * TILE_CHANNELS, h * TILE_CHANNELS, real);
        if (threadIdx.x < 2 * COLUMNS) {
            copy_async4(k_tile + numbers_at(stage) + threadIdx.x * 4, own_numbers + at, own_query < real);
        }
    };
    load(tile, head, 0);
    commit_copies();

    int own_row = shfl((int)threadIdx.x / WARPGROUP, 0) * OWN, key = first_key + own_row;
    Sums acc_k, acc_v;
    Scores p, dp;
    Weights p_left, ds_left;
    bool started = false;  // the sums, which every row that is stored adds to

#pragma unroll 1
    for (unsigned stage = 0; head <= last_head; stage = next_stage(stage)) {
        wait_copies<0>();
        fence_async_proxy();
        __syncthreads();
        int query = tile * COLUMNS;
        if (++tile > last_tile) tile = first_tile, head++;
        if (head <= last_head) load(tile, head, next_stage(stage));
        commit_copies();

        if (!any_seen(key, key + OWN - 1, query, query + COLUMNS - 1, window)) {
            // The stage of the products under way is written after the next barrier.
            wgmma_wait<0>();
            continue;
        }
        unsigned q_tile = stages + stage * 2 * COLUMNS_TILE, dout_tile = q_tile + COLUMNS_TILE;
        const float* numbers = (const float*)(shared + numbers_at(stage));
        wgmma_fence();
        multiply_channels<ROWS>(p, k_tile + own_row * PANEL_ROW, q_tile);
        wgmma_commit();
        multiply_channels<ROWS>(dp, v_tile + own_row * PANEL_ROW, dout_tile);
        wgmma_commit();

        wgmma_wait<1>();
        settle(p);
        weigh_by_column(p, numbers, scale2);
        if (!all_seen(key, key + OWN - 1, query, query + COLUMNS - 1, window)) mask_weights(p, key, query, window);
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

// Scores of 64 queries against a tile of keys become p (dp - delta).
__device__ __forceinline__ void gradient_by_row(Scores& s, const Scores& dp, const RowNumbers& rows, float scale2) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float p = exp2_fast(s[n][e] * scale2 - rows.base[e / 2]);
            s[n][e] = p * (dp[n][e] - rows.delta[e / 2]);
        }
    }
}

// Gradients of scores of keys that the query does not see become zero.
__device__ __forceinline__ void mask_gradient(Scores& ds, int query, int key, int window) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int at_query = query + row_of(e), at_key = key + column_of(n, e);
            if (at_key > at_query || at_key < at_query - window) ds[n][e] = 0.0f;
        }
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

    int tile = max(first_query - window, 0) / COLUMNS;
    int last_tile = min(first_query + ROWS - 1, t - 1) / COLUMNS;
    auto load = [&](int which, unsigned stage) {
        i64 at = kv_at + (i64)which * COLUMNS * kv_stride;
        int real = t - which * COLUMNS;
        unsigned to = stages + stage * 2 * COLUMNS_TILE;
        load_panels<COLUMNS, THREADS>(to, k + at, kv_stride, real);
        load_panels<COLUMNS, THREADS>(to + COLUMNS_TILE, v + at, kv_stride, real);
    };
    load(tile, 0);
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
    wait_copies<0>();
    __syncthreads();
    // The warpgroup's queries stay in registers.
    unsigned q_left[TILE_STEPS][4], dout_left[TILE_STEPS][4];
    load_left<ROWS>(q_left, q_tile, own_row);
    load_left<ROWS>(dout_left, dout_tile, own_row);
    Sums acc;
    Scores s, dp;
    Weights ds_left;
    bool started = false;  // the sums, which every row that is stored adds to

#pragma unroll 1
    for (unsigned stage = 0; tile <= last_tile; tile++, stage = next_stage(stage)) {
        wait_copies<0>();
        fence_async_proxy();
        __syncthreads();
        if (tile < last_tile) load(tile + 1, next_stage(stage));
        commit_copies();

        int key = tile * COLUMNS;
        if (!any_seen(key, key + COLUMNS - 1, query, query + OWN - 1, window)) {
            wgmma_wait<0>();
            continue;
        }
        unsigned k_tile = stages + stage * 2 * COLUMNS_TILE, v_tile = k_tile + COLUMNS_TILE;
        wgmma_fence();
        multiply_channels(s, q_left, k_tile);
        multiply_channels(dp, dout_left, v_tile);
        wgmma_commit();

        wgmma_wait<0>();
        settle(s);
        settle(dp);
        gradient_by_row(s, dp, numbers, scale2);
        if (!all_seen(key, key + COLUMNS - 1, query, query + OWN - 1, window)) mask_gradient(s, query, key, window);
        pack_left(ds_left, s);
        wgmma_fence();
        multiply_rows(acc[0], ds_left, k_tile, started);
        wgmma_commit();
        started = true;
    }
    wgmma_wait<0>();
    settle(acc[0]);
    // Nobody reads the tiles any more.
    __syncthreads();
    store_sums(dq + q_at, q_stride, t - first_query, acc, scale, shared);
}

}  // namespace hopper

#endif

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

KERNELS(attention_backward_kv_wgmma_128, attention_backward_q_wgmma_128)
