// Up to 8 rows times a weight on tensor cores, at the speed of reading the weight: 1 row and 8 cost the same.
//
// A block makes T groups of 8 rows of W (n, k), its warps share the columns. W is the A of mma.m16n8k16 and
// the rows X its B, 8 columns of which those past the m-th are zero. With g = lane / 4 and t = lane % 4 a lane
// holds 8 neighbouring columns, 8 t on, of row g of W (and of row g + 8) and of row g of X: 16 bytes each,
// of which words 0, 1 and words 2, 3 are its parts of two products. Which columns stand where in a product
// makes no difference, as long as A and B agree.
//
// X is rounded to two bf16, x = high + low within 2^-17 of x, and both are multiplied. Weights are asked for
// before the kernel before this one has ended: 12 accesses of 16 bytes a lane.
#pragma once
#include "gemv.cuh"
#include "mma.cuh"

const int FEW = 8;          // rows of X
const int TILE_WARPS = 16;  // of a block at most

// Shared memory: high and low (m rows each), then squares (FEW, TILE_WARPS), then sums (warps, T, 64).
struct TileSpace {
    unsigned char *high, *low;
    float *squares, *sums;
    int stride;  // bytes of a row: two rows that follow each other begin on other banks
    __device__ __forceinline__ TileSpace(unsigned char* shared, int m, int k) {
        stride = (2 * k + 127) / 128 * 128 + 64;
        high = shared;
        low = high + m * stride;
        squares = (float*)(low + m * stride);
        sums = squares + FEW * TILE_WARPS;
    }
    __device__ __forceinline__ float get(int i, int at) const {
        return to_float(((const bf16*)(high + i * stride))[at]) + to_float(((const bf16*)(low + i * stride))[at]);
    }
};

// How many warps read one row of X.
__device__ __forceinline__ int warps_of_row(int m) {
    int warps = blockDim.x / 32, rows = 1;
    while (rows < m && rows < warps) rows *= 2;
    return warps / rows;
}

// Rows of X into shared memory, and the squares of each that every one of its warps has seen.
template <class X> __device__ __forceinline__ void load_rows(const TileSpace& space, int m, int k, X x) {
    const int AT_ONCE = 6;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, of_row = warps_of_row(m), step = of_row * 128;
    for (int i = warp / of_row; i < m; i += blockDim.x / 32 / of_row) {
        float square = 0.0f;
        for (int first = (warp % of_row * 32 + lane) * 4; first < k; first += AT_ONCE * step) {
            Floats<4> own[AT_ONCE];
#pragma unroll
            for (int p = 0; p < AT_ONCE; p++) {
                if (first + p * step < k) own[p] = x(i, first + p * step);
            }
#pragma unroll
            for (int p = 0; p < AT_ONCE; p++) {
                int at = first + p * step;
                if (at >= k) break;
                Floats<4> rest;
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    square += own[p].x[j] * own[p].x[j];
                    rest.x[j] = own[p].x[j] - to_float(to_bf16(own[p].x[j]));
                }
                Access<4>::set((bf16*)(space.high + i * space.stride) + at, own[p]);
                Access<4>::set((bf16*)(space.low + i * space.stride) + at, rest);
            }
        }
        square = warp_sum(square);
        if (lane == 0) space.squares[i * TILE_WARPS + warp % of_row] = square;
    }
}

// The sum of the squares of row i, once `load_rows` is done.
__device__ __forceinline__ float square_of(const TileSpace& space, int m, int i) {
    float sum = 0.0f;
    for (int part = 0; part < warps_of_row(m); part++) sum += space.squares[i * TILE_WARPS + part];
    return sum;
}

// Leaves in space.sums what each warp has of the products; `row(r)`: row r of the block's 8 T of W. Waits for
// the kernel before this one, then calls `then`, and waits for the block at the end.
template <int T, class Row, class X, class Then>
__device__ __forceinline__ void tiles(const TileSpace& space, int m, int k, Row row, X x, Then then) {
    const int AT_ONCE = 12 / T;  // chunks of 32 columns
    int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int chunks = (k + 31) / 32, each = (chunks + warps - 1) / warps;
    int begin = warp * each, end = min(begin + each, chunks);
    const bf16* w[T];
#pragma unroll
    for (int r = 0; r < T; r++) w[r] = row(g + 8 * r) + 8 * t;
    Piece<bf16, 8> pieces[AT_ONCE][T];
    auto load = [&](int first) {
#pragma unroll
        for (int p = 0; p < AT_ONCE; p++) {
            bool there = first + p < end && (first + p) * 32 + 8 * t < k;
#pragma unroll
            for (int r = 0; r < T; r++) {
                if (there) {
                    pieces[p][r].load(w[r] + (first + p) * 32);
                } else {
#pragma unroll
                    for (int j = 0; j < 4; j++) pieces[p][r].words[j] = 0;
                }
            }
        }
    };
    let_next_begin();
    load(begin);
    wait_for_earlier();
    then();
    load_rows(space, m, k, x);
    __syncthreads();
    // High and low, even and odd, so that no product waits for the one before.
    float c[4][4] = {};
    for (int first = begin; first < end; first += AT_ONCE) {
        if (first > begin) load(first);
#pragma unroll
        for (int p = 0; p < AT_ONCE; p++) {
            int at = (first + p) * 32 + 8 * t;
            Chunk high = {}, low = {};
            if (g < m && first + p < end && at < k) {
                high = *(const Chunk*)(space.high + g * space.stride + 2 * at);
                low = *(const Chunk*)(space.low + g * space.stride + 2 * at);
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const unsigned* one = pieces[p][0].words + 2 * half;
                const unsigned* two = pieces[p][T - 1].words + 2 * half;
                unsigned a[4] = {one[0], T == 2 ? two[0] : 0, one[1], T == 2 ? two[1] : 0};
                mma(c[half], a, high.words[2 * half], high.words[2 * half + 1]);
                mma(c[2 + half], a, low.words[2 * half], low.words[2 * half + 1]);
            }
        }
    }
    float* sums = space.sums + warp * T * 64;
#pragma unroll
    for (int j = 0; j < 2 * T; j++) {
        sums[(g + j / 2 * 8) * 8 + 2 * t + j % 2] = c[0][j] + c[1][j] + (c[2][j] + c[3][j]);
    }
    __syncthreads();
}

// Row r of the block's with row i of X, of all warps.
template <int T> __device__ __forceinline__ float tile_sum(const TileSpace& space, int r, int i) {
    float sum = 0.0f;
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) sum += space.sums[(warp * T * 8 + r) * 8 + i];
    return sum;
}
