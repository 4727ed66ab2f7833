// Tensor cores and asynchronous copies (compute capability 8.0 and later), and tiles for them.
//
// A "tile" is a number of rows of D bf16 that lie one after the other in shared memory, named by the
// address of its first byte there. The 16-byte chunks of a row are permuted by the row's number
// (chunk ^ row % 8), so that eight rows' chunks of one column fall on different banks.
//
// Products are made of mma.m16n8k16: A is 16 x 16, B 16 x 8, C 16 x 8. With g = lane / 4 and
// i = lane % 4, a lane holds of C: c[0], c[1] in row g, columns 2i, 2i + 1, and c[2], c[3] in row
// g + 8. The same positions of two neighbouring C, rounded to bf16 and packed, are a lane's part of A.
#pragma once
#include "device.cuh"

#ifdef NANOCHAT_SHIM

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return (unsigned)((const unsigned char*)p - shim::state.shared);
}

namespace shim {
inline void land(unsigned char* to, const void* from, int bytes) {
    if (from != nullptr) memcpy(to, from, bytes);
    else memset(to, 0, bytes);
}
template <int BYTES> void copy_async(unsigned to, const void* from, bool real) {
    if (to % BYTES != 0 || (uintptr_t)from % BYTES != 0) fail("an asynchronous copy is not aligned");
    if (!real) from = nullptr;
    Thread& thread = state.threads[state.current];
    if (state.eager) return land(state.shared + to, from, BYTES);
    thread.copies.push_back({state.shared + to, from, thread.group, BYTES});
}
// The lane's part of the four 8 x 8 matrices, whose rows each lane gave an address of.
struct LoadMatrices {
    unsigned* part;
    unsigned address;
};
template <bool TRANSPOSED> void load_matrices_all(void** operands) {
    unsigned short element[4][8][8];
    for (int i = 0; i < 32; i++) {
        unsigned address = ((LoadMatrices*)operands[i])->address;
        if (address % 16 != 0) fail("an address of ldmatrix is not a multiple of 16");
        memcpy(element[i / 8][i % 8], state.shared + address, 16);
    }
    for (int lane = 0; lane < 32; lane++) {
        int row = lane / 4, column = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            auto& m = element[i];
            unsigned low = TRANSPOSED ? m[column][row] : m[row][column];
            unsigned high = TRANSPOSED ? m[column + 1][row] : m[row][column + 1];
            ((LoadMatrices*)operands[lane])->part[i] = low | high << 16;
        }
    }
}
struct Mma {
    float* c;
    const unsigned* a;
    unsigned b[2];
};
inline float low_half(unsigned x) { return float_of(x << 16); }
inline float high_half(unsigned x) { return float_of(x & 0xffff0000u); }
inline void mma_all(void** operands) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        Mma* mine = (Mma*)operands[lane];
        int g = lane / 4, column = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            float* to = &a[g + i % 2 * 8][column + i / 2 * 8];
            to[0] = low_half(mine->a[i]);
            to[1] = high_half(mine->a[i]);
        }
        for (int i = 0; i < 2; i++) {
            b[column + i * 8][g] = low_half(mine->b[i]);
            b[column + i * 8 + 1][g] = high_half(mine->b[i]);
        }
    }
    float c[16][8] = {};
    for (int m = 0; m < 16; m++) {
        for (int k = 0; k < 16; k++) {
            for (int n = 0; n < 8; n++) c[m][n] += a[m][k] * b[k][n];
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        Mma* mine = (Mma*)operands[lane];
        int g = lane / 4, column = lane % 4 * 2;
        for (int i = 0; i < 4; i++) mine->c[i] += c[g + i / 2 * 8][column + i % 2];
    }
}
}  // namespace shim

__device__ __forceinline__ void copy_async16(unsigned to, const void* from, bool real) {
    shim::copy_async<16>(to, from, real);
}
__device__ __forceinline__ void copy_async4(unsigned to, const void* from, bool real) {
    shim::copy_async<4>(to, from, real);
}
__device__ __forceinline__ void commit_copies() { shim::state.threads[shim::state.current].group++; }
template <int PENDING> __device__ __forceinline__ void wait_copies() {
    shim::Thread& thread = shim::state.threads[shim::state.current];
    size_t landed = 0;
    while (landed < thread.copies.size() && thread.copies[landed].group < thread.group - PENDING) {
        const shim::Copy& copy = thread.copies[landed++];
        shim::land(copy.to, copy.from, copy.bytes);
    }
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + landed);
    if (landed > 0) thread.unfenced = true;
}
__device__ __forceinline__ void load_matrices(unsigned (&part)[4], unsigned address) {
    shim::LoadMatrices mine = {part, address};
    shim::with_warp(shim::load_matrices_all<false>, &mine);
}
__device__ __forceinline__ void load_matrices_transposed(unsigned (&part)[4], unsigned address) {
    shim::LoadMatrices mine = {part, address};
    shim::with_warp(shim::load_matrices_all<true>, &mine);
}
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    shim::Mma mine = {c, a, {b0, b1}};
    shim::with_warp(shim::mma_all, &mine);
}
__device__ __forceinline__ unsigned pack(float low, float high) {
    return to_bf16(low).bits | (unsigned)to_bf16(high).bits << 16;
}

#else

// Address within shared memory, as the instructions below take it.
__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// Copies 16 bytes (or 4) from global to shared memory, to land by the time they are waited for;
// writes zeros, and reads nothing, where not `real`.
__device__ __forceinline__ void copy_async16(unsigned to, const void* from, bool real) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_async4(unsigned to, const void* from, bool real) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(real ? 4 : 0) : "memory");
}
// Closes a group: this thread's copies since the last one.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the PENDING latest groups of this thread are on their way. The copies of other
// threads are seen after a barrier.
template <int PENDING> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8 x 8 matrices: lane l gives the address of row l % 8 of matrix l / 8, and gets of each matrix
// the elements (l / 4, l % 4 * 2 + {0, 1}); the second form transposes each.
__device__ __forceinline__ void load_matrices(unsigned (&part)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(unsigned (&part)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
                 : "r"(address)
                 : "memory");
}

// C += A B.
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats to the nearest bf16 each, the first in the lower half.
__device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

#endif

// ---------------------------------------------------------------------------------------------
// Tiles
// ---------------------------------------------------------------------------------------------

struct __align__(16) Chunk { unsigned words[4]; };

template <int D> __device__ __forceinline__ int chunk_offset(int row, int chunk) {
    return row * (2 * D) + ((chunk ^ (row & 7)) << 4);
}

// Starts the copy of ROWS rows, `stride` elements apart, into a tile; rows from `real_rows` on become zeros.
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void load_tile(unsigned tile, const bf16* from, i64 stride, int real_rows) {
    const int CHUNKS = D / 8, STEP = THREADS / CHUNKS;
    static_assert(ROWS % STEP == 0 && STEP % 8 == 0, "every thread copies as much, with the same swizzle");
    int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    unsigned to = tile + chunk_offset<D>(row, chunk);
    const bf16* source = from + row * stride + chunk * 8;
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++) {
        bool real = row + i * STEP < real_rows;
        copy_async16(to + i * STEP * 2 * D, real ? source : from, real);
        source += STEP * stride;
    }
}

// Which row and chunk of a 16 x 16 part of a tile the lane addresses for load_matrices, such that the
// registers come in the order in which mma takes them:
struct Reader { unsigned row_offset, swizzle; };

template <int D> __device__ __forceinline__ Reader reader(int row, int half) {
    return {(unsigned)(row * 2 * D), (unsigned)((half ^ (row & 7)) << 4)};
}
// as A out of the rows of a tile; and, transposed, as two B whose rows are rows of a tile;
template <int D> __device__ __forceinline__ Reader left_reader() {
    int lane = threadIdx.x % 32;
    return reader<D>(lane & 15, lane >> 4);
}
// as two B whose columns are rows of a tile.
template <int D> __device__ __forceinline__ Reader right_reader() {
    int lane = threadIdx.x % 32;
    return reader<D>((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
}
// Address of the lane's row in the 16 x 16 part of `tile` at `row` (a multiple of 8), columns 16 `step`.
template <int D> __device__ __forceinline__ unsigned part_address(unsigned tile, Reader r, int row, int step) {
    return tile + r.row_offset + row * (2 * D) + ((unsigned)(step * 32) ^ r.swizzle);
}

// c += A B^T: A is 16 M rows of tile `a`, B is 16 N rows of tile `b`.
template <int D, int M, int N>
__device__ __forceinline__ void multiply_rows(float (&c)[M][2 * N][4], unsigned a, unsigned b, Reader left,
                                              Reader right) {
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        unsigned parts_a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_matrices(parts_a[m], part_address<D>(a, left, m * 16, step));
#pragma unroll
        for (int n = 0; n < N; n++) {
            unsigned part_b[4];
            load_matrices(part_b, part_address<D>(b, right, n * 16, step));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(c[m][2 * n], parts_a[m], part_b[0], part_b[1]);
                mma(c[m][2 * n + 1], parts_a[m], part_b[2], part_b[3]);
            }
        }
    }
}

// The same with A in registers: 16 rows, as load_matrices gives them step by step.
template <int D, int N>
__device__ __forceinline__ void multiply_rows(float (&c)[1][2 * N][4], const unsigned (&a)[D / 16][4], unsigned b,
                                              Reader right) {
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            unsigned part_b[4];
            load_matrices(part_b, part_address<D>(b, right, n * 16, step));
            mma(c[0][2 * n], a[step], part_b[0], part_b[1]);
            mma(c[0][2 * n + 1], a[step], part_b[2], part_b[3]);
        }
    }
}

// c += W B: W are 16 M rows of weights as products left them, rounded to bf16; B is 16 N rows of tile `b`.
template <int D, int M, int N>
__device__ __forceinline__ void multiply_weights(float (&c)[M][D / 8][4], const float (&w)[M][2 * N][4], unsigned b,
                                                 Reader left) {
#pragma unroll
    for (int step = 0; step < N; step++) {
        unsigned parts_a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            const float(&first)[4] = w[m][2 * step];
            const float(&second)[4] = w[m][2 * step + 1];
            parts_a[m][0] = pack(first[0], first[1]);
            parts_a[m][1] = pack(first[2], first[3]);
            parts_a[m][2] = pack(second[0], second[1]);
            parts_a[m][3] = pack(second[2], second[3]);
        }
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            unsigned part_b[4];
            load_matrices_transposed(part_b, part_address<D>(b, left, step * 16, n));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(c[m][2 * n], parts_a[m], part_b[0], part_b[1]);
                mma(c[m][2 * n + 1], parts_a[m], part_b[2], part_b[3]);
            }
        }
    }
}

template <int M, int N> __device__ __forceinline__ void clear(float (&c)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) c[m][n][0] = c[m][n][1] = c[m][n][2] = c[m][n][3] = 0.0f;
    }
}

// Stores 16 M rows times `factor` as bf16, as many as `real_rows`. They pass through `space`, rows of a
// tile that no other warp uses and that begin at a multiple of 8, so that 16 bytes go out at once.
template <int D, int M>
__device__ __forceinline__ void store_rows(bf16* to, i64 stride, int real_rows, const float (&c)[M][D / 8][4],
                                           const float (&factor)[M][2], unsigned char* space) {
    const int CHUNKS = D / 8;
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = m * 16 + half * 8 + lane / 4;
#pragma unroll
            for (int n = 0; n < CHUNKS; n++) {
                unsigned pair = pack(c[m][n][2 * half] * factor[m][half], c[m][n][2 * half + 1] * factor[m][half]);
                *(unsigned*)(space + chunk_offset<D>(row, n) + lane % 4 * 4) = pair;
            }
        }
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < M * 16 * CHUNKS / 32; i++) {
        int at = i * 32 + lane, row = at / CHUNKS, chunk = at % CHUNKS;
        if (row < real_rows) *(Chunk*)(to + row * stride + chunk * 8) = *(Chunk*)(space + chunk_offset<D>(row, chunk));
    }
}
