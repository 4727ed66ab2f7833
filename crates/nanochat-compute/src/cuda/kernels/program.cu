// Steps of decoding of one row, from the id to the logits and on to the next id, in one launch: a block a
// multiprocessor, all at the same time, each with its share of the rows of every weight.
//
// A step is a program of phases: embedding, then products and attention in turn. A phase's results go from
// block to block as packets (`exchange.cuh`), so a block goes on as soon as what it reads is there. Weights do
// not depend on that: they stream into a ring of slots in shared memory, phases ahead of their use.
//
//   kernel               grid                       block  shared bytes
//   decode_program_{D}   (blocks): all run at once  384    what `Space` lays out
//
// Formulas: `ops/step.rs`, for one row; streams f32, weights bf16 (n, k) with k a multiple of 8, keys and
// values bf16. `cuda/program.rs` makes the phases. Of queries and keys it promises that no score is so large
// that 2^score is not a number: their norm bounds it. Compute capability 9.0 and later.
#include "program_attend.cuh"
#include "program_linear.cuh"

#if defined(NANOCHAT_SHIM) || __CUDA_ARCH__ >= 900

// x0 = e + gate * last, last = e: each block its share of the channels; all of them need the whole norm.
__device__ __forceinline__ void embed(Space& space, const Phase& p, const Position& at) {
    int thread = thread_here();
    bool there = at.id >= 0 && at.id < p.vocab;
    const float* row = p.table + (there ? (i64)at.id * p.k : 0);
    // Value embeddings of this id are far away as yet.
    for (int i = thread; i < space.launch.count; i += PROGRAM_THREADS) {
        const Phase& other = space.phases()[i];
        if (other.kind != LINEAR || !other.table || !there) continue;
        int n01 = other.n[0] + other.n[1], first = max(other.own.begin, n01);
        if (first >= other.own.end) continue;
        const float* values = other.table + (i64)at.id * other.n[2] - n01;
        prefetch(values + first);
        prefetch(values + other.own.end - 1);
    }
    float square = 0.0f, dot = 0.0f, *x = space.x(), *sums = space.sums[0];
    for (int c = thread; c < p.k; c += PROGRAM_THREADS) {
        float e = row[c];
        x[c] = e;
        square += e * e;
        if (p.gate && c < p.channels) dot += p.gate[c] * e;
    }
    // An id outside the table has no row: what it makes is not a number, and is seen.
    float r = there ? 1.0f / sqrtf(block_sum(square, sums) / p.k + p.eps) : NAN;
    float factor = p.gate ? *p.lambda * sigmoid(r * block_sum(dot, sums)) : 0.0f;
    int begin = p.own.begin, end = p.own.end;
    __syncthreads();
    for (int c = begin + thread; c < end; c += PROGRAM_THREADS) {
        float e = x[c] * r;
        bool wide = p.wide_last;
        float before = wide ? ((float*)p.last)[c] : to_float(((bf16*)p.last)[c]);
        put_packet(p.out + c, p.gate ? e + factor * before : e, at.base);
        if (wide) ((float*)p.last)[c] = e;
        else put((bf16*)p.last + c, e);
    }
    __syncthreads();
}

template <int D> __device__ __forceinline__ void program(
    const void* phases, int count, int steps, int* tokens, int* found, void* best, unsigned* epoch, int slots,
    int slot_bytes, int most_k) {
    SHARED
    Space& space = *(Space*)shared;
    if (threadIdx.x == FILLER) {
        space.launch = {(const Phase*)phases, tokens, found, (u64*)best, epoch,
                        count, steps, slots, slot_bytes, most_k, 0};
        space.filler = {0, 0, 0};
        for (int i = 0; i < slots; i++) slot_init(space.full + i);
        slots_are_made();
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * (int)sizeof(Phase) / 4; i += PROGRAM_THREADS) {
        ((unsigned*)space.phases())[i] = ((const unsigned*)phases)[i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += PROGRAM_THREADS) {
        Phase& p = space.phases()[i];
        if (p.kind == LINEAR) p.own = share_out(space.launch, p.n[0] + p.n[1] + p.n[2], p.k);
        if (p.kind == EMBED) p.own = share_out(space.launch, p.k, p.k);
    }
    __syncthreads();
    if (threadIdx.x == FILLER) {
        for (int i = 0; i < slots; i++) fill(space, i);
    }
    Position at;
    at.base = *epoch;
    for (int step = 0; step < steps; step++) {
        for (int phase = 0; phase < count; phase++) {
            const Phase& p = space.phases()[phase];
            if (p.kind == EMBED) {
                at.id = step == 0 ? *p.ids : wait_id(space, at.base - 1);
                at.query = *p.places + step;
                if (step > 0 && found && blockIdx.x == 0 && threadIdx.x == 0) found[step - 1] = at.id;
                embed(space, p, at);
            } else if (p.kind == LINEAR) {
                linear_phase<D>(space, p, at, phase);
            } else {
                attend<D>(space, p, at, phase);
            }
        }
        at.base += count;
    }
    if (blockIdx.x != 0) return;
    // Every block has read the epoch before it had a largest logit.
    int id = wait_id(space, at.base - 1);
    if (threadIdx.x != 0) return;
    *epoch = at.base;
    if (found) found[steps - 1] = id;
    if (tokens) *tokens = id;
}
#endif

#if defined(NANOCHAT_SHIM) || __CUDA_ARCH__ >= 900
#define PROGRAM_OF(D) program<D>(phases, count, steps, tokens, found, best, epoch, slots, slot_bytes, most_k)
#else
#define PROGRAM_OF(D)
#endif
#define PROGRAM(D)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(384, 1) decode_program_##D(                                         \
        const void* phases, int count, int steps, int* tokens, int* found, void* best, unsigned* epoch, int slots,   \
        int slot_bytes, int most_k) {                                                                                \
        PROGRAM_OF(D);                                                                                               \
    }                                                                                                                \
    KERNELS_TOGETHER(decode_program_##D)

PROGRAM(64)
PROGRAM(128)
