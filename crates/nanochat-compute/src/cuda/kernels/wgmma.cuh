// Hopper's tensor cores: wgmma (compute capability 9.0, target sm_90a), and tiles for it.
//
// wgmma multiplies for a warpgroup, 4 warps of which the first is a multiple of 4: C (64 x N) += A B with
// A 64 x 16 and B 16 x N. Warp w of the four has the rows 16 w to 16 w + 15 of C, and a lane has in them
// what mma.m16n8k16 gives it: c[n][0..4] are those of the columns 8 n to 8 n + 7. A comes from shared memory or
// from registers, as the A of mma; B from shared memory. It is asynchronous:
//
//   wgmma_fence()      before the first product after registers of C or A were written
//   wgmma(c, a, b, add) ...
//   wgmma_commit()     closes a group of products
//   wgmma_wait<P>()    all but the latest P groups are done; until then C, and A in registers, are not touched
//   settle(c)          keeps the compiler from reading c before the wait
//   wait_for_value(x)  keeps waits that follow behind what computes x, which is not negative
//
// wgmma reads shared memory through the "async proxy": what a thread writes there, cp.async included, is
// seen by wgmma only after fence_async_proxy() in that thread and then a barrier.
//
// A "panel" is a number of rows of 64 bf16 (128 bytes) that lie one after the other from a multiple of 1024
// bytes on. The 16-byte chunks of a row are permuted by the row's number (chunk ^ row % 8): the "128-byte
// swizzle" of wgmma's descriptors. A tile of 128 channels is two panels, one after the other.
#pragma once
#include "mma.cuh"

typedef unsigned long long u64;

const int PANEL_CHANNELS = 64;
const unsigned PANEL_ROW = 128;  // bytes

// Kernels of other targets have no body.
#if defined(NANOCHAT_SHIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WGMMA
#endif

// ---------------------------------------------------------------------------------------------
// Descriptors: where a product finds an operand in shared memory
// ---------------------------------------------------------------------------------------------
//
// Bits 0-13: address / 16. Bits 16-29 and 32-45: "leading" and "stride" offset / 16. Bits 62-63: 1, the
// 128-byte swizzle. Bits 49-51, the base offset: 0, since panels begin at multiples of 1024.

__device__ __forceinline__ u64 descriptor(unsigned address, unsigned leading, unsigned stride) {
    return (u64)(address >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | (u64)1 << 62;
}
// The panel's rows are rows of A, or columns of B ("K-major"); a step of 16 channels is 32 bytes further.
// The stride leads to the next 8 rows; the leading offset is not used.
__device__ __forceinline__ u64 rows_descriptor(unsigned panel) { return descriptor(panel, 16, 8 * PANEL_ROW); }
// The panel's rows are rows of B ("MN-major"), 16 of them a step. The leading offset leads to the next 64
// columns, in the next panel; the stride to the next 8 rows.
__device__ __forceinline__ u64 columns_descriptor(unsigned panel, unsigned panel_bytes) {
    return descriptor(panel, panel_bytes, 8 * PANEL_ROW);
}
// The operand that lies `bytes` further on.
__device__ __forceinline__ u64 advanced(u64 descriptor, unsigned bytes) { return descriptor + (bytes >> 4); }

#ifdef NANOCHAT_SHIM

// ---------------------------------------------------------------------------------------------
// The model: a product is done when it is waited for, or at once (`eager_products`)
// ---------------------------------------------------------------------------------------------
//
// While a product is on its way, its accumulators hold not-a-number, and must still do so when it is done.
// Operands in shared memory are read when it is done, so that overwriting them too early shows, or, done at
// once, that they were not there yet.
namespace shim {

struct Product {
    float* c[32];
    const unsigned* a[32];  // null: in shared memory
    unsigned a_parts[32][4];
    u64 a_descriptor, b_descriptor;
    int columns, group;
    bool transposed, add;
};
// What the accumulators of a warp will hold, by the address of the first lane's.
typedef std::map<float*, std::vector<float>> Accumulators;
struct Products {
    std::vector<Product> given;
    Accumulators accumulators;
    int group = 0;  // of the next product
    bool fenced = false;  // since registers may have been written, which they may be after each wait
};
inline std::vector<Products> products_of_warps;

inline Products& products() {
    if (products_of_warps.size() < state.warps.size()) products_of_warps.resize(state.warps.size());
    return products_of_warps[state.current / 32];
}

// The element (row or column `mn`, `k`) of an operand.
inline float operand(u64 descriptor, bool transposed, int mn, int k) {
    unsigned start = (descriptor & 0x3fff) << 4;
    unsigned leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1 || (descriptor >> 46 & 0xffff) != 0) fail("wgmma without the 128-byte swizzle");
    if ((start & 0x380) != 0) fail("an operand of wgmma does not begin at a multiple of 8 rows");
    unsigned at = transposed ? start + mn / 64 * leading + mn % 64 * 2 + k / 8 * stride + k % 8 * 128
                             : start + mn / 8 * stride + mn % 8 * 128 + k * 2;
    at ^= at >> 3 & 0x70;
    if (state.shared + at + 2 > state.blocks[0].memory.data() + state.blocks[0].memory.size()) {
        fail("an operand of wgmma lies outside of shared memory");
    }
    unsigned short bits;
    memcpy(&bits, state.shared + at, 2);
    return float_of((unsigned)bits << 16);
}

// The 16 rows of A that belong to the warp.
inline void left_operand(const Product& product, float (&a)[16][16]) {
    int first = state.current / 32 % 4 * 16;
    for (int m = 0; m < 16 && product.a[0] == nullptr; m++) {
        for (int k = 0; k < 16; k++) a[m][k] = operand(product.a_descriptor, false, first + m, k);
    }
    for (int lane = 0; lane < 32 && product.a[0] != nullptr; lane++) {
        for (int i = 0; i < 4; i++) {
            float* to = &a[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8];
            to[0] = low_half(product.a_parts[lane][i]);
            to[1] = high_half(product.a_parts[lane][i]);
        }
    }
}

// `c` holds the lanes' accumulators, one lane's after the other's.
inline void multiply(const Product& product, float* c) {
    float a[16][16], b[16][128], sum[16][128] = {};
    left_operand(product, a);
    for (int k = 0; k < 16; k++) {
        for (int n = 0; n < product.columns; n++) b[k][n] = operand(product.b_descriptor, product.transposed, n, k);
    }
    for (int m = 0; m < 16; m++) {
        for (int k = 0; k < 16; k++) {
            for (int n = 0; n < product.columns; n++) sum[m][n] += a[m][k] * b[k][n];
        }
    }
    int each = product.columns / 2;
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < each; i++) {
            float x = sum[lane / 4 + i % 4 / 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2];
            c[lane * each + i] = product.add ? c[lane * each + i] + x : x;
        }
    }
}

const unsigned IN_FLIGHT = 0xfffffffe;  // a not-a-number

// Takes the accumulators out of the lanes' hands.
inline void take_accumulators(Accumulators& all, const Product& product) {
    if (all.count(product.c[0]) != 0) return;
    int each = product.columns / 2;
    std::vector<float>& kept = all[product.c[0]];
    for (float* c : product.c) {
        kept.insert(kept.end(), c, c + each);
        for (int i = 0; i < each; i++) memcpy(c + i, &IN_FLIGHT, 4);
    }
}
inline void give_accumulators_back(Accumulators& all, const Product& product) {
    int each = product.columns / 2;
    std::vector<float>& kept = all[product.c[0]];
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < each; i++) {
            if (bits_of(product.c[lane][i]) != IN_FLIGHT) fail("accumulators were written while wgmma had them");
            product.c[lane][i] = kept[lane * each + i];
        }
    }
    all.erase(product.c[0]);
}

inline void give_product(void** operands) {
    Products& all = products();
    Product product = *(Product*)operands[0];
    for (int lane = 0; lane < 32; lane++) {
        Product* mine = (Product*)operands[lane];
        product.c[lane] = mine->c[0];
        product.a[lane] = mine->a[0];
        if (mine->a[0] != nullptr) memcpy(product.a_parts[lane], mine->a[0], 16);
        if (mine->a_descriptor != product.a_descriptor || mine->b_descriptor != product.b_descriptor) {
            fail("lanes give wgmma different descriptors");
        }
    }
    if (!all.fenced) fail("wgmma without wgmma_fence");
    for (Thread& thread : state.threads) {
        if (thread.unfenced) fail("wgmma after asynchronous copies that fence_async_proxy does not follow");
    }
    product.group = all.group;
    take_accumulators(all.accumulators, product);
    if (state.eager_products) {
        multiply(product, all.accumulators[product.c[0]].data());
        return give_accumulators_back(all.accumulators, product);
    }
    all.given.push_back(product);
    state.warps[state.current / 32].products++;
}

// Does the warp's products of groups before `group`.
inline void do_products(Products& all, int group) {
    size_t done = 0;
    while (done < all.given.size() && all.given[done].group < group) {
        const Product& product = all.given[done++];
        multiply(product, all.accumulators[product.c[0]].data());
        bool more = false;
        for (size_t i = done; i < all.given.size(); i++) more |= all.given[i].c[0] == product.c[0];
        if (!more) give_accumulators_back(all.accumulators, product);
    }
    all.given.erase(all.given.begin(), all.given.begin() + done);
    state.warps[state.current / 32].products -= (int)done;
}

template <int COLUMNS, bool TRANSPOSED>
void wgmma(float* c, const unsigned* a, u64 a_descriptor, u64 b_descriptor, bool add) {
    Product mine = {};
    mine.c[0] = c, mine.a[0] = a;
    mine.a_descriptor = a_descriptor, mine.b_descriptor = b_descriptor;
    mine.columns = COLUMNS, mine.transposed = TRANSPOSED, mine.add = add;
    with_warp(give_product, &mine);
}

}  // namespace shim

__device__ __forceinline__ void wgmma(float (&c)[8][4], u64 a, u64 b, bool add) {
    shim::wgmma<64, false>(c[0], nullptr, a, b, add);
}
__device__ __forceinline__ void wgmma(float (&c)[8][4], const unsigned (&a)[4], u64 b, bool add) {
    shim::wgmma<64, false>(c[0], a, 0, b, add);
}
__device__ __forceinline__ void wgmma(float (&c)[16][4], u64 a, u64 b, bool add) {
    shim::wgmma<128, false>(c[0], nullptr, a, b, add);
}
__device__ __forceinline__ void wgmma_transposed(float (&c)[16][4], const unsigned (&a)[4], u64 b, bool add) {
    shim::wgmma<128, true>(c[0], a, 0, b, add);
}
__device__ __forceinline__ void wgmma_fence() {
    shim::with_warp([](void**) { shim::products().fenced = true; }, nullptr);
}
__device__ __forceinline__ void wgmma_commit() {
    shim::with_warp([](void**) { shim::products().group++; }, nullptr);
}
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    shim::with_warp(
        [](void**) {
            shim::Products& all = shim::products();
            shim::do_products(all, all.group - PENDING);
            all.fenced = false;
        },
        nullptr);
}
template <int N> __device__ __forceinline__ void settle(float (&)[N][4]) {}
__device__ __forceinline__ void wait_for_value(float) {}
__device__ __forceinline__ void fence_async_proxy() { shim::state.threads[shim::state.current].unfenced = false; }

#elif defined(HAS_WGMMA)

#define ROW(MODE, c) MODE(c[0]), MODE(c[1]), MODE(c[2]), MODE(c[3])
#define WGMMA_64(MODE, ADD)                                                                                         \
    asm volatile(                                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"                                                    \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                    \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                         \
        "%32, %33, " ADD ", 1, 1, 0, 0;"                                                                            \
        : ROW(MODE, c[0]), ROW(MODE, c[1]), ROW(MODE, c[2]), ROW(MODE, c[3]),                                       \
          ROW(MODE, c[4]), ROW(MODE, c[5]), ROW(MODE, c[6]), ROW(MODE, c[7])                                        \
        : "l"(a), "l"(b)                                                                                            \
        : "memory")
#define WGMMA_64_LEFT(MODE, ADD)                                                                                    \
    asm volatile(                                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"                                                    \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                    \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                         \
        "{%32, %33, %34, %35}, %36, " ADD ", 1, 1, 0;"                                                              \
        : ROW(MODE, c[0]), ROW(MODE, c[1]), ROW(MODE, c[2]), ROW(MODE, c[3]),                                       \
          ROW(MODE, c[4]), ROW(MODE, c[5]), ROW(MODE, c[6]), ROW(MODE, c[7])                                        \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                                                        \
        : "memory")
#define WGMMA_128(MODE, ADD)                                                                                        \
    asm volatile(                                                                                                   \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"                                                   \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                    \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                          \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                          \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                         \
        "%64, %65, " ADD ", 1, 1, 0, 0;"                                                                            \
        : ROW(MODE, c[0]), ROW(MODE, c[1]), ROW(MODE, c[2]), ROW(MODE, c[3]),                                       \
          ROW(MODE, c[4]), ROW(MODE, c[5]), ROW(MODE, c[6]), ROW(MODE, c[7]),                                       \
          ROW(MODE, c[8]), ROW(MODE, c[9]), ROW(MODE, c[10]), ROW(MODE, c[11]),                                     \
          ROW(MODE, c[12]), ROW(MODE, c[13]), ROW(MODE, c[14]), ROW(MODE, c[15])                                    \
        : "l"(a), "l"(b)                                                                                            \
        : "memory")

// C = A B, or += where `add`, which is known when compiling: C is then no input, so that the compiler need not
// keep its registers. Both operands by rows, with descriptors of rows_descriptor.
__device__ __forceinline__ void wgmma(float (&c)[8][4], u64 a, u64 b, bool add) {
    if (add) WGMMA_64("+f", "1");
    else WGMMA_64("=f", "0");
}
// The same with A in registers.
__device__ __forceinline__ void wgmma(float (&c)[8][4], const unsigned (&a)[4], u64 b, bool add) {
    if (add) WGMMA_64_LEFT("+f", "1");
    else WGMMA_64_LEFT("=f", "0");
}
__device__ __forceinline__ void wgmma(float (&c)[16][4], u64 a, u64 b, bool add) {
    if (add) WGMMA_128("+f", "1");
    else WGMMA_128("=f", "0");
}
// With A in registers and B transposed: a descriptor of columns_descriptor. `add` may be known later.
__device__ __forceinline__ void wgmma_transposed(float (&c)[16][4], const unsigned (&a)[4], u64 b, bool add) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 1;}"
        : ROW("+f", c[0]), ROW("+f", c[1]), ROW("+f", c[2]), ROW("+f", c[3]),
          ROW("+f", c[4]), ROW("+f", c[5]), ROW("+f", c[6]), ROW("+f", c[7]),
          ROW("+f", c[8]), ROW("+f", c[9]), ROW("+f", c[10]), ROW("+f", c[11]),
          ROW("+f", c[12]), ROW("+f", c[13]), ROW("+f", c[14]), ROW("+f", c[15])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add)
        : "memory");
}

#undef ROW
#undef WGMMA_64
#undef WGMMA_64_LEFT
#undef WGMMA_128

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
template <int N> __device__ __forceinline__ void settle(float (&c)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) asm volatile("" : "+f"(c[n][e])::"memory");
    }
}
// A branch that no warp ever takes: the assembler moves no wait across it. The vote tells it that the warp
// stays together, without which it would do products one by one.
__device__ __forceinline__ void wait_for_value(float x) {
    if (__any_sync(0xffffffffu, x < 0.0f)) asm volatile("trap;");
}
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif

#ifdef HAS_WGMMA

// ---------------------------------------------------------------------------------------------
// Tiles of two panels, and products of them
// ---------------------------------------------------------------------------------------------

const int WARPGROUP = 128;
const int TILE_CHANNELS = 2 * PANEL_CHANNELS;
const int TILE_STEPS = TILE_CHANNELS / 16;  // of a product over channels

// Offset of a chunk of 8 channels in a tile of ROWS rows.
template <int ROWS> __device__ __forceinline__ unsigned panel_chunk(int row, int chunk) {
    return chunk / 8 * (ROWS * PANEL_ROW) + row * PANEL_ROW + ((chunk % 8 ^ (row & 7)) << 4);
}

// Starts the copy of ROWS rows, `stride` elements apart, into a tile; rows from `real_rows` on become zeros.
template <int ROWS, int THREADS>
__device__ __forceinline__ void load_panels(unsigned tile, const bf16* from, i64 stride, int real_rows) {
    const int CHUNKS = TILE_CHANNELS / 8, STEP = THREADS / CHUNKS;
    static_assert(ROWS % STEP == 0 && STEP % 8 == 0, "every thread copies as much, with the same swizzle");
    int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    unsigned to = tile + panel_chunk<ROWS>(row, chunk);
    const bf16* source = from + row * stride + chunk * 8;
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++) {
        bool real = row + i * STEP < real_rows;
        copy_async16(to + i * STEP * PANEL_ROW, real ? source : from, real);
        source += STEP * stride;
    }
}

// The lane's part of A out of the 64 rows of its warpgroup, the first of which is `row` of a tile of ROWS.
template <int ROWS>
__device__ __forceinline__ void load_left(unsigned (&a)[TILE_STEPS][4], unsigned tile, int row) {
    row += threadIdx.x % WARPGROUP / 32 * 16 + threadIdx.x % 16;
    int half = threadIdx.x % 32 / 16;
#pragma unroll
    for (int step = 0; step < TILE_STEPS; step++) {
        load_matrices(a[step], tile + panel_chunk<ROWS>(row, step * 2 + half));
    }
}

// Offset of the 16 channels of a step, by rows, in a tile of ROWS rows.
template <int ROWS> __device__ __forceinline__ unsigned step_offset(int step) {
    return step / 4 * (ROWS * PANEL_ROW) + step % 4 * 32;
}

// c = A B^T over the channels: A is 64 rows of a tile of ROWS from address `a` on, B the tile `b`.
template <int ROWS, int N>
__device__ __forceinline__ void multiply_channels(float (&c)[N][4], unsigned a, unsigned b) {
    u64 left = rows_descriptor(a), right = rows_descriptor(b);
#pragma unroll
    for (int step = 0; step < TILE_STEPS; step++) {
        wgmma(c, advanced(left, step_offset<ROWS>(step)), advanced(right, step_offset<8 * N>(step)), step > 0);
    }
}
// The same with A in registers.
template <int N>
__device__ __forceinline__ void multiply_channels(float (&c)[N][4], const unsigned (&a)[TILE_STEPS][4], unsigned b) {
    u64 right = rows_descriptor(b);
#pragma unroll
    for (int step = 0; step < TILE_STEPS; step++) {
        wgmma(c, a[step], advanced(right, step_offset<8 * N>(step)), step > 0);
    }
}
// c = W B, or += where `add`: W are weights in registers, as `pack_left` leaves them, B a tile of 16 STEPS rows.
template <int STEPS>
__device__ __forceinline__ void multiply_rows(float (&c)[TILE_CHANNELS / 8][4], const unsigned (&w)[STEPS][4],
                                              unsigned b, bool add) {
    u64 right = columns_descriptor(b, STEPS * 16 * PANEL_ROW);
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        wgmma_transposed(c, w[step], advanced(right, step * 16 * PANEL_ROW), add || step > 0);
    }
}

// Accumulators, rounded to bf16, as the A of a product.
template <int STEPS>
__device__ __forceinline__ void pack_left(unsigned (&a)[STEPS][4], const float (&c)[2 * STEPS][4]) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float(&from)[4] = c[2 * step + i / 2];
            a[step][i] = pack(from[i % 2 * 2], from[i % 2 * 2 + 1]);
        }
    }
}

#endif
