// What the phases of program.cu share: their records, shared memory, the ring of weights, and how rows come from
// other blocks.
#pragma once
#include "attention_decode.cuh"
#include "exchange.cuh"
#include "gemv.cuh"

#if defined(NANOCHAT_SHIM) || __CUDA_ARCH__ >= 900

const int PROGRAM_WARPS = 12, PROGRAM_THREADS = 384;
const int WARP_ROWS = 7;     // of a round, that a warp makes at most; the eighth sum is that of the squares
const int ROUND_ROWS = 32;   // one a lane of the warp that finishes them
const int MOST_SPLITS = 8;   // of a head
const int FILLER = PROGRAM_THREADS - 32;  // the thread that asks for weights

enum PhaseKind { EMBED = 0, LINEAR = 1, ATTEND = 2 };
enum Finish { AS_IS = 0, RELU_SQUARED = 1, SOFT_CAP = 2 };

// A row as packets of one phase, or a times that and b times another.
struct Stream {
    const u64 *x, *y;
    const float *a, *b;
    int x_phase, y_phase;
    float sign;  // of b
    int unused;
};

// A block's share of n rows of k weights, and how its warps share that: each has 256 columns of some rows.
struct Own {
    int begin, end;
    int segments, groups;         // of 256 columns; of warps, one for each segment
    int slot_rows, round_rows;    // of a slot of the ring; that are made together
    int of_segments, of_slot;     // (x * of_segments) >> 16 is x / segments, for small x
};

// As `Words` in program.rs writes it.
struct Phase {
    Stream in, add;
    const bf16* w[3];
    u64* out;         // packets
    float* logits;    // in place of packets
    const float *table, *gate;           // value embedding; or what ids are looked up in, and smear
    const float *lambda;                 // smear
    void *last;                          // smear: the embedding before
    const int* ids;
    union {
        struct {
            bf16 *keys, *values;
            const float *cosine, *sine;
        };
        Own own;  // of products and of the embedding; the block makes it
    };
    const int* places;
    int kind, n[3], k, norm, finish, partials;
    float eps, cap, gate_scale, scale, qk_scale;
    int vocab, d, channels, wide_last, h, hkv, window, unused[2];
};

// What a launch is given.
struct Launch {
    const Phase* phases;
    int *tokens, *found;  // the id fed, and those found; each may be absent
    u64* best;            // (blocks, 2): largest logit and where
    unsigned* epoch;      // tag of the first phase
    int count, steps, slots, slot_bytes, most_k, unused;
};

// The one thread's place in the stream of weights.
struct Filler {
    int step, phase, chunk;
};

// Shared memory.
const int MOST_SLOTS = 64, SUM_STRIDE = 17;
struct Space {
    u64 full[MOST_SLOTS];
    float sums[2][ROUND_ROWS * SUM_STRIDE];
    float squares[2][16];
    float heads[3][128];  // query, new key and value
    float records[PROGRAM_WARPS][132];
    Launch launch;
    Filler filler;
    // SPACE in program.rs has room for this.
    // Then the ring, (slots, slot_bytes), what is multiplied, (most_k) floats, and the phases.
    __device__ __forceinline__ unsigned char* ring() {
        return (unsigned char*)this + (sizeof(Space) + 127) / 128 * 128;
    }
    __device__ __forceinline__ float* x() { return (float*)(ring() + launch.slots * launch.slot_bytes); }
    __device__ __forceinline__ Phase* phases() { return (Phase*)(x() + launch.most_k); }
};

static_assert(sizeof(Phase) == 304 && sizeof(Space) <= 13056, "program.rs lays them out");

// The thread's number, as if every phase had one of its own: what is computed from it is not kept from phase to
// phase. Registers would not do, and what is spilled does not stay in the little first-level cache that the ring
// leaves.
__device__ __forceinline__ int thread_here() {
    int thread = threadIdx.x;
#ifndef NANOCHAT_SHIM
    asm volatile("" : "+r"(thread));
#endif
    return thread;
}

// A block's share of n rows.
__device__ __forceinline__ int share_begin(int n, int block) { return (int)((i64)n * block / gridDim.x); }

__device__ __forceinline__ Own share_out(const Launch& l, int n, int k) {
    Own own;
    own.begin = share_begin(n, blockIdx.x);
    own.end = share_begin(n, blockIdx.x + 1);
    own.segments = (k + 255) / 256;
    own.groups = own.segments < PROGRAM_WARPS ? PROGRAM_WARPS / own.segments : 1;
    int most = min(ROUND_ROWS, WARP_ROWS * own.groups);
    own.slot_rows = min(l.slot_bytes / (2 * k), most);
    own.round_rows = min(most / own.slot_rows, l.slots / 2) * own.slot_rows;
    own.of_segments = 65536 / own.segments + 1;
    own.of_slot = 65536 / own.slot_rows + 1;
    return own;
}

// Asks for the next weights of this block's, into a slot that is free; done by one thread.
__device__ __forceinline__ void fill(Space& space, int slot) {
    const Launch& l = space.launch;
    Filler next = space.filler;
    for (; next.step < l.steps; next.chunk = 0) {
        const Phase& p = space.phases()[next.phase];
        if (p.kind == LINEAR) {
            int k = p.k, first = p.own.begin + next.chunk * p.own.slot_rows;
            int end = min(first + p.own.slot_rows, p.own.end);
            if (first < end) {
                slot_expect(space.full + slot, (end - first) * 2 * k);
                unsigned char* to = space.ring() + slot * l.slot_bytes;
                for (int i = 0, start = 0; i < 3 && start < end; start += p.n[i], i++) {
                    int from = max(first, start), until = min(end, start + p.n[i]);
                    if (from < until) {
                        slot_copy(to + (from - first) * 2 * k, p.w[i] + (i64)(from - start) * k,
                                  (until - from) * 2 * k, space.full + slot);
                    }
                }
                next.chunk++;
                break;
            }
        }
        if (++next.phase == l.count) next.phase = 0, next.step++;
    }
    space.filler = next;
}

// Where all threads are in the ring, and in the steps.
struct Position {
    int slot = 0;          // next to be used
    unsigned parity = 0;   // of slots from there on
    unsigned base;         // tag of the step's first phase
    int query, id, round = 0;
};

// Sums of 8 numbers over the warp: lanes 4 i .. 4 i + 3 get that of number i.
__device__ __forceinline__ float sum_of_eight(const float (&x)[8], int lane) {
    float four[4], two[2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        bool high = lane & 16;
        float other = shfl_xor(high ? x[i] : x[i + 4], 16);
        four[i] = (high ? x[i + 4] : x[i]) + other;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        bool high = lane & 8;
        float other = shfl_xor(high ? four[i] : four[i + 2], 8);
        two[i] = (high ? four[i + 2] : four[i]) + other;
    }
    bool high = lane & 4;
    float one = (high ? two[1] : two[0]) + shfl_xor(high ? two[0] : two[1], 4);
    one += shfl_xor(one, 2);
    return one + shfl_xor(one, 1);
}

// A whole stream, into shared memory: N pairs a thread at a time.
template <int N, bool MIXED> __device__ __forceinline__ void wait_stream(
    float* to, const Stream& s, int k, unsigned base) {
    const int STRIDE = 2 * PROGRAM_THREADS;
    const bool mixed = MIXED && s.y;
    float fa = mixed && s.a ? *s.a : 1.0f, fb = mixed ? s.sign * *s.b : 0.0f;
    unsigned x_tag = base + s.x_phase, y_tag = base + s.y_phase;
#pragma unroll 1
    for (int at = 2 * thread_here(); at < k; at += N * STRIDE) {
        Pairs<N> x, y;
        x.ask(s.x, at, STRIDE, k);
        if (mixed) y.ask(s.y, at, STRIDE, k);
        x.wait(s.x, at, STRIDE, k, x_tag);
        if (mixed) y.wait(s.y, at, STRIDE, k, y_tag);
#pragma unroll
        for (int i = 0; i < N; i++) {
            int own = at + i * STRIDE;
            if (own >= k) break;
            float one = number_of(x.own[i].x), two = number_of(x.own[i].y);
            if (mixed) {
                one = fa * one + fb * number_of(y.own[i].x);
                two = fa * two + fb * number_of(y.own[i].y);
            }
            *(Two32*)(to + own) = {one, two};
        }
    }
}

// How the pages that a query sees are shared out.
struct Splits {
    int first_key, first_page, each, used;
    __device__ __forceinline__ Splits(int query, int window) {
        first_key = max(query - window, 0);
        first_page = first_key / PAGE;
        int pages = query / PAGE - first_page + 1;
        each = (pages + MOST_SPLITS - 1) / MOST_SPLITS;
        used = each == 1 ? pages : (pages + each - 1) / each;
    }
};

// What attention made, splits added up, into shared memory.
template <int D> __device__ __forceinline__ void wait_heads(float* to, const Phase& p, const Position& at) {
    const int RECORD = D + 2, N = 2;
    int used = Splits(at.query, p.window).used, k = p.k;
    unsigned tag = at.base + p.in.x_phase;
#pragma unroll 1
    for (int own = 2 * thread_here(); own < k; own += 2 * PROGRAM_THREADS) {
        const u64* from = p.in.x + (i64)(own / D) * MOST_SPLITS * RECORD;
        float one = 0.0f, two = 0.0f, sum = 0.0f;
#pragma unroll 1
        for (int split = 0; split < used; split += N) {
            Pairs<N> x, weights;
            int begin = split * RECORD, end = used * RECORD;
            x.ask(from, begin + own % D, RECORD, end);
            weights.ask(from, begin + D, RECORD, end);
            x.wait(from, begin + own % D, RECORD, end, tag);
            weights.wait(from, begin + D, RECORD, end, tag);
#pragma unroll
            for (int i = 0; i < N; i++) {
                if (split + i >= used) break;
                one += number_of(x.own[i].x), two += number_of(x.own[i].y), sum += number_of(weights.own[i].x);
            }
        }
        *(Two32*)(to + own) = {one / sum, two / sum};
    }
}

// The largest logit of some, the lowest place of equals.
struct Largest {
    float value;
    int place;
    __device__ __forceinline__ void take(float x, int at) {
        if (x > value || (x == value && at < place)) value = x, place = at;
    }
    __device__ __forceinline__ void over_warp() {
#pragma unroll 1
        for (int mask = 16; mask > 0; mask >>= 1) take(shfl_xor(value, mask), shfl_xor(place, mask));
    }
};

// The id of the largest logit, in every thread.
__device__ __forceinline__ int wait_id(Space& all, unsigned tag) {
    float* space = all.x();
    __syncthreads();
    int thread = thread_here();
    if (thread < (int)gridDim.x) {
        Pairs<1> own;
        own.ask(all.launch.best, 2 * thread, 0, 2 * gridDim.x);
        own.wait(all.launch.best, 2 * thread, 0, 2 * gridDim.x, tag);
        space[2 * thread] = number_of(own.own[0].x);
        space[2 * thread + 1] = number_of(own.own[0].y);
    }
    // What blocks wrote before their largest logit is there from here on: keys and values of this step.
    __threadfence();
    __syncthreads();
    Largest best = {-INFINITY, 0x7fffffff};
#pragma unroll 1
    for (int i = thread % 32; i < (int)gridDim.x; i += 32) best.take(space[2 * i], (int)bits_of(space[2 * i + 1]));
    best.over_warp();
    __syncthreads();
    return best.place == 0x7fffffff ? 0 : best.place;
}
#endif
