// Products of one row: a phase of program.cu. A block has some rows of the weights; its warps share their columns,
// add up in shared memory, and one of them finishes the results.
#pragma once
#include "program.cuh"

#if defined(NANOCHAT_SHIM) || __CUDA_ARCH__ >= 900

// What the finishing warp needs beside sums, a lane a row: asked for before they are there.
template <int D> struct Finisher {
    u64 x, y;
    float fa, fb, value, gates[2];
    int low, high;  // rows of the round that have a value embedding, less those of queries and keys

    __device__ __forceinline__ void ask(const Phase& p, const Position& at, int first, int rows) {
        int lane = thread_here() % 32, row = first + lane;
        bool mine = lane < rows;
        if (mine && p.add.x) {
            x = get_bits(p.add.x + row);
            if (p.add.y) {
                y = get_bits(p.add.y + row);
                fa = p.add.a ? *p.add.a : 1.0f, fb = p.add.sign * *p.add.b;
            }
        }
        low = high = 0;
        if (!p.table) return;
        int n01 = p.n[0] + p.n[1], channels = p.channels;
        low = max(first - n01, 0), high = max(first + rows - n01, 0);
        if (low >= high) return;
        if (mine && row >= n01) {
            bool there = at.id >= 0 && at.id < p.vocab;
            value = there ? p.table[(i64)at.id * p.n[2] + row - n01] : NAN;
        }
        if (lane < channels) {
            const float* gate = p.gate + low / D * channels + lane;
            gates[0] = *gate;
            gates[1] = (high - 1) / D > low / D ? gate[channels] : 0.0f;
        }
    }
    // What is added to the lane's row.
    __device__ __forceinline__ float added(const Phase& p, const Position& at, int row) {
        if (!p.add.x) return 0.0f;
        float sum = wait_packet(x, p.add.x + row, at.base + p.add.x_phase);
        if (p.add.y) sum = fa * sum + fb * wait_packet(y, p.add.y + row, at.base + p.add.y_phase);
        return sum;
    }
    // What value embeddings add to it; r: what the norm multiplies rows by. A round has rows of two heads at most.
    __device__ __forceinline__ float gated(const Phase& p, const float* in, int row, float r) {
        if (low >= high) return 0.0f;
        int lane = thread_here() % 32, own = row - p.n[0] - p.n[1];
        float own_in = lane < p.channels ? in[lane] : 0.0f;
        float one = warp_sum(lane < p.channels ? gates[0] * own_in : 0.0f);
        float two = (high - 1) / D > low / D ? warp_sum(lane < p.channels ? gates[1] * own_in : 0.0f) : 0.0f;
        if (own < low || own >= high) return 0.0f;
        return p.gate_scale * sigmoid(r * (own / D > low / D ? two : one)) * value;
    }
};

// 256 columns of some rows of a round's weights, from the ring to registers.
__device__ __forceinline__ void load_rows(
    Piece<bf16, 8> (&pieces)[WARP_ROWS], const Launch& l, const unsigned char* ring, const Own& own, int slot, int k,
    int group, int column, int rows) {
#pragma unroll
    for (int i = 0; i < WARP_ROWS; i++) {
        int row = group + i * own.groups;
        if (row >= rows) break;
        int chunk = (row * own.of_slot) >> 16, at = slot + chunk;
        if (at >= l.slots) at -= l.slots;
        Chunk words = {};
        if (column < k) {
            words = *(const Chunk*)(ring + at * l.slot_bytes + ((row - chunk * own.slot_rows) * k + column) * 2);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) pieces[i].words[j] = words.words[j];
    }
}

template <int D> __device__ __forceinline__ void linear_phase(Space& space, const Phase& p, Position& at, int phase) {
    const Launch& l = space.launch;
    const Own own = p.own;
    const unsigned char* ring = space.ring();
    float* in = space.x();
    int thread = thread_here(), warp = thread / 32, lane = thread % 32, k = p.k;
    int parts = min(own.segments, PROGRAM_WARPS);
    int group = own.groups > 1 ? (warp * own.of_segments) >> 16 : 0, segment = warp - group * own.segments;
    bool works = group < own.groups && segment < own.segments;
    Largest best = {-INFINITY, 0x7fffffff};
    // Keys and values of this step are there for all before the largest logit is.
    if (p.logits) __threadfence();
#pragma unroll 1
    for (int first = own.begin; first < own.end; first += own.round_rows) {
        int rows = min(own.round_rows, own.end - first), chunks = ((rows - 1) * own.of_slot >> 16) + 1;
        int odd = at.round++ % 2;
        float *sums = space.sums[odd], *squares = space.squares[odd];
        Finisher<D> finisher;
        if (warp == 0) finisher.ask(p, at, first, rows);
#pragma unroll 1
        for (int i = 0; i < chunks; i++) {
            bool wraps = at.slot + i >= l.slots;
            slot_wait(space.full + at.slot + i - (wraps ? l.slots : 0), at.parity ^ (wraps ? 1 : 0));
        }
        Piece<bf16, 8> pieces[WARP_ROWS];
        if (works) load_rows(pieces, l, ring, own, at.slot, k, group, segment * 256 + lane * 8, rows);
        if (first == own.begin) {
            if (p.partials) wait_heads<D>(in, p, at);
            else if (p.in.y || k <= 2 * PROGRAM_THREADS) wait_stream<1, true>(in, p.in, k, at.base);
            else wait_stream<4, false>(in, p.in, k, at.base);
            __syncthreads();
        }
        if (works) {
            float dot[8] = {};
#pragma unroll 1
            for (int i = segment; i < own.segments; i += PROGRAM_WARPS) {
                int column = i * 256 + lane * 8;
                if (i != segment) load_rows(pieces, l, ring, own, at.slot, k, group, column, rows);
                Floats<8> x = {};
                if (column < k) x = Access<8>::get(in + column);
#pragma unroll
                for (int j = 0; j < 8; j++) dot[7] += x.x[j] * x.x[j];
#pragma unroll
                for (int r = 0; r < WARP_ROWS; r++) {
                    if (group + r * own.groups >= rows) break;
#pragma unroll
                    for (int j = 0; j < 8; j++) dot[r] += x.x[j] * pieces[r].get(j);
                }
                if (own.groups > 1) break;
            }
            float sum = sum_of_eight(dot, lane);
            int row = group + lane / 4 * own.groups;
            if (lane % 4 == 0 && lane < 28 && row < rows) sums[row * SUM_STRIDE + segment] = sum;
            if (lane == 28 && group == 0) squares[segment] = sum;
        }
        __syncthreads();
        if (thread == FILLER) {
#pragma unroll 1
            for (int i = 0; i < chunks; i++) {
                fill(space, at.slot + i - (at.slot + i >= l.slots ? l.slots : 0));
            }
        }
        if (warp == 0) {
            float sum = 0.0f, square = 0.0f;
#pragma unroll
            for (int i = 0; i < PROGRAM_WARPS; i++) {
                float part = sums[lane * SUM_STRIDE + i], other = squares[i];
                sum += i < parts ? part : 0.0f;
                square += i < parts ? other : 0.0f;
            }
            int row = first + lane;
            float r = p.norm ? rsqrtf(square / k + p.eps) : 1.0f;
            sum = sum * r + finisher.gated(p, in, row, r);
            if (p.finish == RELU_SQUARED) sum = sum > 0.0f ? sum * sum : sum != sum ? sum : 0.0f;
            if (p.finish == SOFT_CAP) sum = p.cap * tanhf(sum / p.cap);
            if (lane < rows && p.logits) p.logits[row] = sum, best.take(sum, row);
            if (lane < rows && !p.logits) put_packet(p.out + row, sum + finisher.added(p, at, row), at.base + phase);
        }
        at.slot += chunks;
        if (at.slot >= l.slots) at.slot -= l.slots, at.parity ^= 1;
    }
    if (p.logits && warp == 0) {
        best.over_warp();
        if (lane == 0) {
            put_packet(l.best + 2 * blockIdx.x, best.value, at.base + phase);
            put_packet(l.best + 2 * blockIdx.x + 1, float_of((unsigned)best.place), at.base + phase);
        }
    }
}
#endif
