// Causal attention with a sliding window and grouped queries: forward and backward.
//
// q, out, dout, dq (B, T, H, D); k, v, dk, dv (B, T, Hkv, D); lse, delta f32 (B, T, H); Hkv divides H.
// The query at t sees the keys t - window ..= t. lse = ln sum exp(scale q·k), delta = dout·out.
// Every output is overwritten, and the same each time: no sum depends on the order of blocks.
//
// Tensor cores, bf16, D = 64 or 128, any T >= 1, scale > 0:
//
//   kernel                          grid                        block  shared bytes
//   attention_forward_{D}           (ceil(T / 128), H, B)       128    768 D
//   attention_delta_{bf16,f32}      (ceil(B T H / 8), 1, 1)     256    0
//   attention_backward_kv_{D}       (ceil(T / 128), Hkv, B)     256    1024 D + 1024
//   attention_backward_q_{D}        (ceil(T / 128), H, B)       256    1024 D
//
// Any D <= 256, f32 or bf16 (all tensors but lse and delta), a warp for a query or a key, simple:
//
//   attention_plain_forward_{bf16,f32}      (ceil(B T H / 8), 1, 1)     256  0
//   attention_plain_backward_q_{bf16,f32}   (ceil(B T H / 8), 1, 1)     256  0
//   attention_plain_backward_kv_{bf16,f32}  (ceil(B T Hkv / 8), 1, 1)   256  0
//
// Arguments (int and float by value; "shape" is int b, int t, int h, int hkv, int d):
//
//   attention_forward_{D}                 out, lse, q, k, v, int t, int h, int hkv, int window, float scale
//   attention_backward_kv_{D}             dk, dv, dout, lse, delta, q, k, v, int t, int h, int hkv, int window, float scale
//   attention_backward_q_{D}              dq, dout, lse, delta, q, k, v, int t, int h, int hkv, int window, float scale
//   attention_delta_{type}                delta, dout, out, int rows (B T H), int d
//   attention_plain_forward_{type}        out, lse, q, k, v, shape, int window, float scale
//   attention_plain_backward_q_{type}     dq, dout, lse, delta, q, k, v, shape, int window, float scale
//   attention_plain_backward_kv_{type}    dk, dv, dout, lse, delta, q, k, v, shape, int window, float scale
//
// A backward is delta, then backward_kv and backward_q in either order.
#include "attention_forward.cuh"
#include "attention_plain.cuh"

// ---------------------------------------------------------------------------------------------
// Forward
// ---------------------------------------------------------------------------------------------

template <int D>
__device__ __forceinline__ void forward(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, int t,
                                        int h, int hkv, int window, float scale) {
    // Late queries see the most keys: they go first.
    int first = (gridDim.x - 1 - blockIdx.x) * 128, head = blockIdx.y;
    i64 row = (i64)blockIdx.z * t;
    i64 q_at = (row * h + head) * D, kv_at = (row * hkv + head / (h / hkv)) * D;
    Queries queries = {q + q_at, out + q_at, lse + row * h + head, (i64)h * D, h, t, 0};
    DenseKeys keys = {k + kv_at, v + kv_at, (i64)hkv * D};
    attend_block<D, 2>(queries, keys, first, window, scale);
}

extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, 2)
    attention_forward_64(bf16* __restrict__ out, float* __restrict__ lse, const bf16* __restrict__ q,
                         const bf16* __restrict__ k, const bf16* __restrict__ v, int t, int h, int hkv, int window,
                         float scale) {
    forward<64>(out, lse, q, k, v, t, h, hkv, window, scale);
}
extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, 2)
    attention_forward_128(bf16* __restrict__ out, float* __restrict__ lse, const bf16* __restrict__ q,
                          const bf16* __restrict__ k, const bf16* __restrict__ v, int t, int h, int hkv, int window,
                          float scale) {
    forward<128>(out, lse, q, k, v, t, h, hkv, window, scale);
}

// ---------------------------------------------------------------------------------------------
// Backward
// ---------------------------------------------------------------------------------------------
//
// Scores are computed again, once for dk and dv and once for dq. A single pass would have to add dq
// up over blocks, in an order that changes from run to run.

const int BACKWARD_THREADS = 256;
const int BACKWARD_ROWS = 128;  // keys (for dk, dv) or queries (for dq) of a block, 16 a warp
const int QUERIES = 64;         // of a tile, for dk and dv

// For dk and dv, scores are transposed: rows are the warp's 16 keys, columns the 64 queries of a tile.
// So weights become the left operand of dv += p^T dout without leaving their registers.

// Scores to weights exp(scale q·k - lse); `lse` are the tile's, in shared memory.
__device__ __forceinline__ void weigh_transposed(float (&s)[1][QUERIES / 8][4], const float* lse, float scale2) {
    int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) s[0][n][e] = exp2_fast(s[0][n][e] * scale2 - lse[n * 8 + column + e % 2] * LOG2_E);
    }
}

// Weights that no query may have become zero.
__device__ __forceinline__ void mask_transposed(float (&p)[1][QUERIES / 8][4], int key, int query, int window) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int at_key = key + lane / 4 + e / 2 * 8;
            int at_query = query + n * 8 + lane % 4 * 2 + e % 2;
            if (at_key > at_query || at_key < at_query - window) p[0][n][e] = 0.0f;
        }
    }
}

// p becomes the gradient of the scores, p (dp - delta); `delta` are the tile's, in shared memory.
__device__ __forceinline__ void gradient_transposed(float (&p)[1][QUERIES / 8][4], const float (&dp)[1][QUERIES / 8][4],
                                                    const float* delta) {
    int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) p[0][n][e] *= dp[0][n][e] - delta[n * 8 + column + e % 2];
    }
}

template <int D>
__device__ __forceinline__ void backward_kv(bf16* dk, bf16* dv, const bf16* dout, const float* lse, const float* delta,
                                            const bf16* q, const bf16* k, const bf16* v, int t, int h, int hkv,
                                            int window, float scale) {
    SHARED
    const unsigned KV_TILE = BACKWARD_ROWS * D * 2, Q_TILE = QUERIES * D * 2;
    const unsigned STAGE = 2 * Q_TILE + 2 * QUERIES * 4;  // q, dout, lse, delta
    unsigned k_tile = shared_address(shared), v_tile = k_tile + KV_TILE, stages = v_tile + KV_TILE;
    unsigned char* stages_memory = shared + 2 * KV_TILE;
    window = min(window, t);
    float scale2 = scale * LOG2_E;

    // Early keys are seen by the most queries: they go first.
    int first_key = blockIdx.x * BACKWARD_ROWS, group = h / hkv;
    i64 row = (i64)blockIdx.z * t;
    q += row * h * D, dout += row * h * D, lse += row * h, delta += row * h;
    i64 kv_at = ((row + first_key) * hkv + blockIdx.y) * D, kv_stride = (i64)hkv * D;
    load_tile<D, BACKWARD_ROWS, BACKWARD_THREADS>(k_tile, k + kv_at, kv_stride, t - first_key);
    load_tile<D, BACKWARD_ROWS, BACKWARD_THREADS>(v_tile, v + kv_at, kv_stride, t - first_key);

    // The steps: each tile of queries that see these keys, for each head that reads them.
    int first_tile = first_key / QUERIES;
    int last_tile = min((t - 1) / QUERIES, (first_key + BACKWARD_ROWS - 1 + window) / QUERIES);
    int tile = first_tile, head = blockIdx.y * group, last_head = head + group - 1;
    // What the first threads copy besides: one number of a query, zero for queries that are not there,
    // which give nothing since their dout is zero.
    int own_query = threadIdx.x % QUERIES;
    const float* own_numbers = (threadIdx.x < QUERIES ? lse : delta) + (i64)own_query * h;
    auto load = [&](int which, int of_head, unsigned stage) {
        int first = which * QUERIES, real = t - first;
        i64 at = (i64)first * h + of_head;
        load_tile<D, QUERIES, BACKWARD_THREADS>(stage, q + at * D, h * D, real);
        load_tile<D, QUERIES, BACKWARD_THREADS>(stage + Q_TILE, dout + at * D, h * D, real);
        if (threadIdx.x < 2 * QUERIES) {
            bool there = own_query < real;
            copy_async4(stage + 2 * Q_TILE + threadIdx.x * 4, own_numbers + at, there);
        }
    };
    load(tile, head, stages);
    commit_copies();

    int warp_row = threadIdx.x / 32 * 16, key = first_key + warp_row;
    unsigned k_rows = k_tile + warp_row * D * 2, v_rows = v_tile + warp_row * D * 2;
    Reader left = left_reader<D>(), right = right_reader<D>();
    float acc_k[1][D / 8][4], acc_v[1][D / 8][4];
    clear(acc_k);
    clear(acc_v);

#pragma unroll 1
    for (unsigned turn = 0; head <= last_head; turn ^= 1) {
        wait_copies<0>();
        __syncthreads();
        int query = tile * QUERIES;
        if (++tile > last_tile) tile = first_tile, head++;
        if (head <= last_head) load(tile, head, stages + (turn ^ 1) * STAGE);
        commit_copies();

        if (!any_seen(key, key + 15, query, query + QUERIES - 1, window)) continue;
        unsigned q_tile = stages + turn * STAGE, dout_tile = q_tile + Q_TILE;
        const float* lse_tile = (const float*)(stages_memory + turn * STAGE + 2 * Q_TILE);
        float p[1][QUERIES / 8][4], dp[1][QUERIES / 8][4];
        clear(p);
        multiply_rows<D, 1, QUERIES / 16>(p, k_rows, q_tile, left, right);
        weigh_transposed(p, lse_tile, scale2);
        if (!all_seen(key, key + 15, query, query + QUERIES - 1, window)) mask_transposed(p, key, query, window);
        multiply_weights<D, 1, QUERIES / 16>(acc_v, p, dout_tile, left);
        clear(dp);
        multiply_rows<D, 1, QUERIES / 16>(dp, v_rows, dout_tile, left, right);
        gradient_transposed(p, dp, lse_tile + QUERIES);
        multiply_weights<D, 1, QUERIES / 16>(acc_k, p, q_tile, left);
    }
    float k_factor[1][2] = {{scale, scale}}, v_factor[1][2] = {{1.0f, 1.0f}};
    i64 to = kv_at + warp_row * kv_stride;
    unsigned char* space = shared + warp_row * D * 2;
    store_rows<D, 1>(dk + to, kv_stride, t - key, acc_k, k_factor, space);
    store_rows<D, 1>(dv + to, kv_stride, t - key, acc_v, v_factor, space + KV_TILE);
}

// Scores of 16 queries against a tile of keys become p (dp - delta). `lse` and `delta` are the lane's two rows'.
__device__ __forceinline__ void gradient_of_scores(float (&s)[1][KEYS / 8][4], const float (&dp)[1][KEYS / 8][4],
                                                   const float (&lse)[2], const float (&delta)[2], float scale2) {
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float p = exp2_fast(s[0][n][e] * scale2 - lse[e / 2] * LOG2_E);
            s[0][n][e] = p * (dp[0][n][e] - delta[e / 2]);
        }
    }
}

template <int D>
__device__ __forceinline__ void backward_q(bf16* dq, const bf16* dout, const float* lse, const float* delta,
                                           const bf16* q, const bf16* k, const bf16* v, int t, int h, int hkv,
                                           int window, float scale) {
    SHARED
    const unsigned Q_TILE = BACKWARD_ROWS * D * 2, KV_TILE = KEYS * D * 2;
    unsigned q_tile = shared_address(shared), dout_tile = q_tile + Q_TILE, stages = dout_tile + Q_TILE;
    float scale2 = scale * LOG2_E;

    int first_query = (gridDim.x - 1 - blockIdx.x) * BACKWARD_ROWS, head = blockIdx.y;
    i64 row = (i64)blockIdx.z * t;
    i64 q_at = ((row + first_query) * h + head) * D, q_stride = (i64)h * D;
    i64 kv_at = (row * hkv + head / (h / hkv)) * D, kv_stride = (i64)hkv * D;
    load_tile<D, BACKWARD_ROWS, BACKWARD_THREADS>(q_tile, q + q_at, q_stride, t - first_query);
    load_tile<D, BACKWARD_ROWS, BACKWARD_THREADS>(dout_tile, dout + q_at, q_stride, t - first_query);

    int tile = max(first_query - window, 0) / KEYS;
    int last_tile = min(first_query + BACKWARD_ROWS - 1, t - 1) / KEYS;
    auto load = [&](int which, unsigned stage) {
        i64 at = kv_at + (i64)which * KEYS * kv_stride;
        int real = t - which * KEYS;
        load_tile<D, KEYS, BACKWARD_THREADS>(stage, k + at, kv_stride, real);
        load_tile<D, KEYS, BACKWARD_THREADS>(stage + KV_TILE, v + at, kv_stride, real);
    };
    load(tile, stages);
    commit_copies();

    int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16, query = first_query + warp_row;
    float row_lse[2], row_delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int at = query + half * 8 + lane / 4;
        i64 from = (row + at) * h + head;
        row_lse[half] = at < t ? lse[from] : 0.0f;
        row_delta[half] = at < t ? delta[from] : 0.0f;
    }
    Reader left = left_reader<D>(), right = right_reader<D>();
    wait_copies<0>();
    __syncthreads();
    // The warp's queries stay in registers.
    unsigned q_parts[D / 16][4], dout_parts[D / 16][4];
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        load_matrices(q_parts[step], part_address<D>(q_tile, left, warp_row, step));
        load_matrices(dout_parts[step], part_address<D>(dout_tile, left, warp_row, step));
    }
    float acc[1][D / 8][4];
    clear(acc);

    for (unsigned turn = 0; tile <= last_tile; tile++, turn ^= 1) {
        wait_copies<0>();
        __syncthreads();
        if (tile < last_tile) load(tile + 1, stages + (turn ^ 1) * 2 * KV_TILE);
        commit_copies();

        int key = tile * KEYS;
        if (!any_seen(key, key + KEYS - 1, query, query + 15, window)) continue;
        unsigned k_tile = stages + turn * 2 * KV_TILE, v_tile = k_tile + KV_TILE;
        float s[1][KEYS / 8][4], dp[1][KEYS / 8][4];
        clear(s);
        multiply_rows<D, KEYS / 16>(s, q_parts, k_tile, right);
        if (!all_seen(key, key + KEYS - 1, query, query + 15, window)) mask_scores(s, query, key, window);
        clear(dp);
        multiply_rows<D, KEYS / 16>(dp, dout_parts, v_tile, right);
        gradient_of_scores(s, dp, row_lse, row_delta, scale2);
        multiply_weights<D, 1, KEYS / 16>(acc, s, k_tile, left);
    }
    float factor[1][2] = {{scale, scale}};
    store_rows<D, 1>(dq + q_at + warp_row * q_stride, q_stride, t - query, acc, factor, shared + warp_row * D * 2);
}

extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, 1)
    attention_backward_kv_64(bf16* __restrict__ dk, bf16* __restrict__ dv, const bf16* __restrict__ dout,
                             const float* __restrict__ lse, const float* __restrict__ delta,
                             const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v, int t,
                             int h, int hkv, int window, float scale) {
    backward_kv<64>(dk, dv, dout, lse, delta, q, k, v, t, h, hkv, window, scale);
}
extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, 1)
    attention_backward_kv_128(bf16* __restrict__ dk, bf16* __restrict__ dv, const bf16* __restrict__ dout,
                              const float* __restrict__ lse, const float* __restrict__ delta,
                              const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v, int t,
                              int h, int hkv, int window, float scale) {
    backward_kv<128>(dk, dv, dout, lse, delta, q, k, v, t, h, hkv, window, scale);
}
extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, 1)
    attention_backward_q_64(bf16* __restrict__ dq, const bf16* __restrict__ dout, const float* __restrict__ lse,
                            const float* __restrict__ delta, const bf16* __restrict__ q, const bf16* __restrict__ k,
                            const bf16* __restrict__ v, int t, int h, int hkv, int window, float scale) {
    backward_q<64>(dq, dout, lse, delta, q, k, v, t, h, hkv, window, scale);
}
extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, 1)
    attention_backward_q_128(bf16* __restrict__ dq, const bf16* __restrict__ dout, const float* __restrict__ lse,
                             const float* __restrict__ delta, const bf16* __restrict__ q, const bf16* __restrict__ k,
                             const bf16* __restrict__ v, int t, int h, int hkv, int window, float scale) {
    backward_q<128>(dq, dout, lse, delta, q, k, v, t, h, hkv, window, scale);
}

// ---------------------------------------------------------------------------------------------
// Delta, and the plain kernels
// ---------------------------------------------------------------------------------------------

// A warp for a row of D channels.
template <class T>
__device__ __forceinline__ void row_products(float* delta, const T* dout, const T* out, int rows, int d) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    dout += (i64)row * d;
    out += (i64)row * d;
    float sum = 0.0f;
    if (d % 4 == 0) {
        for (int i = lane * 4; i < d; i += 128) {
            Floats<4> a = Access<4>::get(dout + i), b = Access<4>::get(out + i);
            for (int j = 0; j < 4; j++) sum += a.x[j] * b.x[j];
        }
    } else {
        for (int i = lane; i < d; i += 32) sum += to_float(dout[i]) * to_float(out[i]);
    }
    sum = warp_sum(sum);
    if (lane == 0) delta[row] = sum;
}

#define PLAIN_ATTENTION(NAME, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) attention_delta_##NAME(                                          \
        float* __restrict__ delta, const T* __restrict__ dout, const T* __restrict__ out, int rows, int d) {           \
        row_products(delta, dout, out, rows, d);                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) attention_plain_forward_##NAME(                                  \
        T* __restrict__ out, float* __restrict__ lse, const T* __restrict__ q, const T* __restrict__ k,                \
        const T* __restrict__ v, int b, int t, int h, int hkv, int d, int window, float scale) {                       \
        plain_forward(out, lse, q, k, v, PlainShape{b, t, h, hkv, d, window, scale});                                  \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) attention_plain_backward_q_##NAME(                               \
        T* __restrict__ dq, const T* __restrict__ dout, const float* __restrict__ lse,                                 \
        const float* __restrict__ delta, const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,    \
        int b, int t, int h, int hkv, int d, int window, float scale) {                                                \
        plain_backward_q(dq, dout, lse, delta, q, k, v, PlainShape{b, t, h, hkv, d, window, scale});                   \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) attention_plain_backward_kv_##NAME(                              \
        T* __restrict__ dk, T* __restrict__ dv, const T* __restrict__ dout, const float* __restrict__ lse,             \
        const float* __restrict__ delta, const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,    \
        int b, int t, int h, int hkv, int d, int window, float scale) {                                                \
        plain_backward_kv(dk, dv, dout, lse, delta, q, k, v, PlainShape{b, t, h, hkv, d, window, scale});              \
    }

PLAIN_ATTENTION(f32, float)
PLAIN_ATTENTION(bf16, bf16)

KERNELS(attention_forward_64, attention_forward_128, attention_backward_kv_64, attention_backward_kv_128,
        attention_backward_q_64, attention_backward_q_128, attention_delta_f32, attention_delta_bf16,
        attention_plain_forward_f32, attention_plain_forward_bf16, attention_plain_backward_q_f32,
        attention_plain_backward_q_bf16, attention_plain_backward_kv_f32, attention_plain_backward_kv_bf16)
