// Steps of decoding of one row, from the id to the logits and on to the next id, in one launch: a block a
// multiprocessor, all at the same time, each with its share of the rows of every weight.
//
// A step is a program of phases: embedding, then products and attention in turn. A phase's results go from
// block to block as packets (`exchange.cuh`), so a block goes on as soon as what it reads is there. Weights do
// not depend on that: they stream into a ring of slots in shared memory, phases ahead of their use.
//
//   kernel           grid                       block  shared bytes
//   decode_program_{D}   (blocks): all run at once  384    what `Space` lays out
//
// Formulas: `ops/step.rs`, for one row; streams f32, weights bf16 (n, k) with k a multiple of 8, keys and
// values bf16. `cuda/program.rs` makes the phases. Of queries and keys it promises that no score is so large
// that 2^score is not a number: their norm bounds it. Compute capability 9.0 and later.
#include "attention_decode.cuh"
#include "exchange.cuh"
#include "gemv.cuh"

#if defined(NANOCHAT_SHIM) || __CUDA_ARCH__ >= 900

const int PROGRAM_WARPS = 12, PROGRAM_THREADS = 384;
const int WARP_ROWS = 7;     // of a round, that a warp makes at most; the eighth sum is that of the squares
const int ROUND_ROWS = 32;   // one a lane of the warp that finishes them
const int MOST_SPLITS = 8;   // of a head
const int SPLIT_PAGES = 2;   // that a block attends to at least
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
    bf16 *keys, *values;
    const float *cosine, *sine;
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
    __device__ __forceinline__ unsigned char* ring() { return (unsigned char*)this + (sizeof(Space) + 127) / 128 * 128; }
    __device__ __forceinline__ float* x() { return (float*)(ring() + launch.slots * launch.slot_bytes); }
    __device__ __forceinline__ Phase* phases() { return (Phase*)(x() + launch.most_k); }
};

static_assert(sizeof(Phase) == 304 && sizeof(Space) <= 13056, "program.rs lays them out");

// How the rows of k weights are shared out.
struct Shape {
    int segments, groups;      // of 256 columns; of warps, one for each segment
    int slot_rows, round_rows;
    __device__ __forceinline__ Shape(const Launch& l, int k) {
        segments = (k + 255) / 256;
        groups = segments < PROGRAM_WARPS ? PROGRAM_WARPS / segments : 1;
        int most = min(ROUND_ROWS, WARP_ROWS * groups);
        slot_rows = min(l.slot_bytes / (2 * k), most);
        round_rows = min(most / slot_rows, l.slots / 2) * slot_rows;
    }
};

// A block's share of n rows.
__device__ __forceinline__ int share_begin(int n, int block) { return (int)((i64)n * block / gridDim.x); }

// Asks for the next weights of this block's, into a slot that is free; done by one thread.
__device__ __forceinline__ void fill(Space& space, int slot) {
    const Launch& l = space.launch;
    Filler next = space.filler;
    for (; next.step < l.steps; next.chunk = 0) {
        const Phase& p = space.phases()[next.phase];
        if (p.kind == LINEAR) {
            int n = p.n[0] + p.n[1] + p.n[2], k = p.k, slot_rows = Shape(l, k).slot_rows;
            int first = share_begin(n, blockIdx.x) + next.chunk * slot_rows;
            int end = min(first + slot_rows, share_begin(n, blockIdx.x + 1));
            if (first < end) {
                slot_expect(space.full + slot, (end - first) * 2 * k);
                unsigned char* to = space.ring() + slot * l.slot_bytes;
                for (int i = 0, start = 0; i < 3; start += p.n[i], i++) {
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

// The number `at` of a stream.
__device__ __forceinline__ float wait_one(const Stream& s, int at, unsigned base) {
    float x = wait_packet(s.x + at, base + s.x_phase);
    if (!s.y) return x;
    float fa = s.a ? *s.a : 1.0f, fb = s.sign * *s.b;
    return fa * x + fb * wait_packet(s.y + at, base + s.y_phase);
}

// A whole stream, into shared memory.
__device__ __forceinline__ void wait_stream(float* to, const Stream& s, int k, unsigned base) {
    const int N = 4, STRIDE = 2 * PROGRAM_THREADS;
    float fa = s.a ? *s.a : 1.0f, fb = s.y ? s.sign * *s.b : 0.0f;
    for (int at = 2 * threadIdx.x; at < k; at += N * STRIDE) {
        Pairs<N> x, y;
        if (s.y) y.ask(s.y, at, STRIDE, k);
        x.ask(s.x, at, STRIDE, k);
        x.wait(s.x, at, STRIDE, k, base + s.x_phase);
        if (s.y) y.wait(s.y, at, STRIDE, k, base + s.y_phase);
#pragma unroll
        for (int i = 0; i < N; i++) {
            int own = at + i * STRIDE;
            if (own >= k) break;
            float one = number_of(x.own[i].x), two = number_of(x.own[i].y);
            if (s.y) {
                one = fa * one + fb * number_of(y.own[i].x);
                two = fa * two + fb * number_of(y.own[i].y);
            }
            to[own] = one;
            to[own + 1] = two;
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
        each = max(SPLIT_PAGES, (pages + MOST_SPLITS - 1) / MOST_SPLITS);
        used = (pages + each - 1) / each;
    }
};

// What attention made, splits added up, into shared memory.
__device__ __forceinline__ void wait_heads(float* to, const Phase& p, const Position& at) {
    int used = Splits(at.query, p.window).used, record = p.d + 2;
    unsigned tag = at.base + p.in.x_phase;
    for (int own = 2 * threadIdx.x; own < p.k; own += 2 * PROGRAM_THREADS) {
        const u64* from = p.in.x + (i64)(own / p.d) * MOST_SPLITS * record;
        float one = 0.0f, two = 0.0f, sum = 0.0f;
        for (int split = 0; split < used; split += 2) {
            Pairs<2> x, weights;
            const u64* begin = from + split * record;
            int end = (used - split) * record;
            x.ask(begin, own % p.d, record, end);
            weights.ask(begin, p.d, record, end);
            x.wait(begin, own % p.d, record, end, tag);
            weights.wait(begin, p.d, record, end, tag);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (split + i >= used) break;
                one += number_of(x.own[i].x), two += number_of(x.own[i].y), sum += number_of(weights.own[i].x);
            }
        }
        to[own] = one / sum;
        to[own + 1] = two / sum;
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
        for (int mask = 16; mask > 0; mask >>= 1) take(shfl_xor(value, mask), shfl_xor(place, mask));
    }
};

// The id of the largest logit, in every thread.
__device__ __forceinline__ int wait_id(Space& all, unsigned tag) {
    float* space = all.x();
    __syncthreads();
    if (threadIdx.x < gridDim.x) {
        Pairs<1> own;
        own.ask(all.launch.best, 2 * threadIdx.x, 0, 2 * gridDim.x);
        own.wait(all.launch.best, 2 * threadIdx.x, 0, 2 * gridDim.x, tag);
        space[2 * threadIdx.x] = number_of(own.own[0].x);
        space[2 * threadIdx.x + 1] = number_of(own.own[0].y);
    }
    // What blocks wrote before their largest logit is there from here on: keys and values of this step.
    __threadfence();
    __syncthreads();
    Largest best = {-INFINITY, 0x7fffffff};
    for (int i = threadIdx.x % 32; i < (int)gridDim.x; i += 32) best.take(space[2 * i], (int)bits_of(space[2 * i + 1]));
    best.over_warp();
    __syncthreads();
    return best.place == 0x7fffffff ? 0 : best.place;
}

// x0 = e + gate * last, last = e: each block its share of the channels; all of them need the whole norm.
__device__ __forceinline__ void embed(Space& space, const Phase& p, const Position& at) {
    bool there = at.id >= 0 && at.id < p.vocab;
    const float* row = p.table + (there ? (i64)at.id * p.k : 0);
    // Value embeddings of this id are far away as yet.
    for (int i = threadIdx.x; i < space.launch.count; i += PROGRAM_THREADS) {
        const Phase& other = space.phases()[i];
        if (other.kind != LINEAR || !other.table || !there) continue;
        int n01 = other.n[0] + other.n[1], n = n01 + other.n[2], end = share_begin(n, blockIdx.x + 1);
        for (int own = max(share_begin(n, blockIdx.x), n01); own < end; own += 8) {
            prefetch(other.table + (i64)at.id * other.n[2] + own - n01);
        }
    }
    float square = 0.0f, dot = 0.0f, *x = space.x(), *sums = space.sums[0];
    for (int c = threadIdx.x; c < p.k; c += PROGRAM_THREADS) {
        float e = row[c];
        x[c] = e;
        square += e * e;
        if (p.gate && c < p.channels) dot += p.gate[c] * e;
    }
    // An id outside the table has no row: what it makes is not a number, and is seen.
    float r = there ? 1.0f / sqrtf(block_sum(square, sums) / p.k + p.eps) : NAN;
    float factor = p.gate ? *p.lambda * sigmoid(r * block_sum(dot, sums)) : 0.0f;
    int begin = share_begin(p.k, blockIdx.x), end = share_begin(p.k, blockIdx.x + 1);
    __syncthreads();
    for (int c = begin + threadIdx.x; c < end; c += PROGRAM_THREADS) {
        float e = x[c] * r;
        bool wide = p.wide_last;
        float before = wide ? ((float*)p.last)[c] : to_float(((bf16*)p.last)[c]);
        put_packet(p.out + c, p.gate ? e + factor * before : e, at.base);
        if (wide) ((float*)p.last)[c] = e;
        else put((bf16*)p.last + c, e);
    }
    __syncthreads();
}

// The finishing warp's view of the rows of a round, asked for before the rows are there.
struct Finisher {
    float added = 0.0f, value = 0.0f, gates[2] = {0.0f, 0.0f};
    int row, n01, low, high;  // rows low .. high have a value embedding
    __device__ __forceinline__ Finisher(const Phase& p, const Position& at, int first, int rows) {
        int lane = threadIdx.x;
        row = first + lane;
        n01 = p.n[0] + p.n[1];
        bool gated = p.kind == LINEAR && p.table;
        low = gated ? max(first, n01) : 0, high = gated ? first + rows : 0;
        if (lane >= rows) return;
        if (p.add.x) added = wait_one(p.add, row, at.base);
        if (gated && row >= n01) {
            bool there = at.id >= 0 && at.id < p.vocab;
            value = there ? p.table[(i64)at.id * p.n[2] + row - n01] : NAN;
        }
    }
    __device__ __forceinline__ void ask_gates(const Phase& p) {
        if (low >= high) return;
        int head = (low - n01) / p.d, lane = threadIdx.x;
        for (int i = 0; i < 2; i++) {
            if (lane < p.channels && head + i < p.hkv) gates[i] = p.gate[(head + i) * p.channels + lane];
        }
    }
    // What value embeddings add to the lane's row; r: what the norm multiplies rows by.
    __device__ __forceinline__ float gated(const Phase& p, const float* x, float r) {
        float added = 0.0f;
        if (low >= high) return added;
        int first = (low - n01) / p.d, lane = threadIdx.x, own = (row - n01) / p.d;
        for (int head = first; head <= (high - 1 - n01) / p.d; head++) {
            float w = head == first ? gates[0] : head == first + 1 ? gates[1] : 0.0f;
            if (head > first + 1 && lane < p.channels) w = p.gate[head * p.channels + lane];
            float z = warp_sum(lane < p.channels ? w * x[lane] : 0.0f);
            if (row >= n01 && row < high && own == head) added = p.gate_scale * sigmoid(r * z) * value;
        }
        return added;
    }
};

__device__ __forceinline__ void linear_phase(
    Space& space, const Phase& p, Position& at, int phase) {
    const Launch& l = space.launch;
    float* in = space.x();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, k = p.k, n = p.n[0] + p.n[1] + p.n[2];
    Shape shape(l, k);
    int begin = share_begin(n, blockIdx.x), end = share_begin(n, blockIdx.x + 1);
    int segment = shape.groups > 1 ? warp % shape.segments : warp;
    int group = shape.groups > 1 ? warp / shape.segments : 0, parts = min(shape.segments, PROGRAM_WARPS);
    bool works = group < shape.groups && segment < shape.segments;
    Largest best = {-INFINITY, 0x7fffffff};
    // Keys and values of this step are there for all before the largest logit is.
    if (p.logits) __threadfence();
    for (int first = begin; first < end; first += shape.round_rows) {
        int rows = min(shape.round_rows, end - first), chunks = (rows + shape.slot_rows - 1) / shape.slot_rows;
        int odd = at.round++ % 2;
        float *sums = space.sums[odd], *squares = space.squares[odd];
        Finisher finisher(p, at, first, warp == 0 ? rows : 0);
        if (warp == 0) finisher.ask_gates(p);
        for (int i = 0; i < chunks; i++) {
            bool wraps = at.slot + i >= l.slots;
            slot_wait(space.full + at.slot + i - (wraps ? l.slots : 0), at.parity ^ (wraps ? 1 : 0));
        }
        Piece<bf16, 8> pieces[WARP_ROWS];
        auto load = [&](int segment) {
            int column = segment * 256 + lane * 8, chunk = 0, rest = group;
#pragma unroll
            for (int i = 0; i < WARP_ROWS; i++, rest += shape.groups) {
                while (rest >= shape.slot_rows) rest -= shape.slot_rows, chunk++;
                int slot = at.slot + chunk - (at.slot + chunk >= l.slots ? l.slots : 0);
                const unsigned char* from = space.ring() + slot * l.slot_bytes + (rest * k + column) * 2;
                bool there = group + i * shape.groups < rows && column < k;
                Chunk own = {};
                if (there) own = *(const Chunk*)from;
#pragma unroll
                for (int j = 0; j < 4; j++) pieces[i].words[j] = own.words[j];
            }
        };
        if (works) load(segment);
        if (first == begin) {
            if (p.partials) wait_heads(in, p, at);
            else wait_stream(in, p.in, k, at.base);
            __syncthreads();
        }
        if (works) {
            float dot[8] = {};
            for (int own = segment; own < shape.segments; own += PROGRAM_WARPS) {
                if (own != segment) load(own);
                int column = own * 256 + lane * 8;
                Floats<8> x = {};
                if (column < k) x = Access<8>::get(in + column);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    dot[7] += x.x[j] * x.x[j];
#pragma unroll
                    for (int i = 0; i < WARP_ROWS; i++) dot[i] += x.x[j] * pieces[i].get(j);
                }
                if (shape.groups > 1) break;
            }
            float sum = sum_of_eight(dot, lane);
            int own = group + lane / 4 * shape.groups;
            if (lane % 4 == 0 && lane < 28 && own < rows) sums[own * SUM_STRIDE + segment] = sum;
            if (lane == 28 && group == 0) squares[segment] = sum;
        }
        __syncthreads();
        if (threadIdx.x == FILLER) {
            for (int i = 0; i < chunks; i++) {
                fill(space, at.slot + i - (at.slot + i >= l.slots ? l.slots : 0));
            }
        }
        at.slot += chunks;
        if (at.slot >= l.slots) at.slot -= l.slots, at.parity ^= 1;
        if (warp == 0) {
            float sum = 0.0f, square = 0.0f;
            for (int i = 0; i < parts; i++) sum += sums[lane * SUM_STRIDE + i], square += squares[i];
            float r = p.norm ? 1.0f / sqrtf(square / k + p.eps) : 1.0f;
            sum = sum * r + finisher.gated(p, in, r) + finisher.added;
            if (p.finish == RELU_SQUARED) sum = sum > 0.0f ? sum * sum : sum != sum ? sum : 0.0f;
            if (p.finish == SOFT_CAP) sum = p.cap * tanhf(sum / p.cap);
            int row = first + lane;
            if (lane < rows && p.logits) p.logits[row] = sum, best.take(sum, row);
            if (lane < rows && !p.logits) put_packet(p.out + row, sum, at.base + phase);
        }
    }
    if (p.logits && warp == 0) {
        best.over_warp();
        if (lane == 0) {
            put_packet(l.best + 2 * blockIdx.x, best.value, at.base + phase);
            put_packet(l.best + 2 * blockIdx.x + 1, float_of((unsigned)best.place), at.base + phase);
        }
    }
}

// A head of the query or the new key, by a warp: rotated by the position, then normalised.
template <int D> __device__ __forceinline__ void rotate(
    float* to, bf16* cache, const Phase& p, int query, const u64* from, unsigned tag, float scale) {
    int lane = threadIdx.x % 32;
    const int PAIRS = D / 64;
    float y1[PAIRS], y2[PAIRS], c[PAIRS], s[PAIRS], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        c[i] = p.cosine[(i64)query * (D / 2) + lane + 32 * i];
        s[i] = p.sine[(i64)query * (D / 2) + lane + 32 * i];
    }
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        int j = lane + 32 * i;
        float a = wait_packet(from + j, tag), b = wait_packet(from + j + D / 2, tag);
        y1[i] = a * c[i] + b * s[i];
        y2[i] = b * c[i] - a * s[i];
        sum += y1[i] * y1[i] + y2[i] * y2[i];
    }
    float r = p.qk_scale / sqrtf(warp_sum(sum) / D + p.eps);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        int j = lane + 32 * i;
        bf16 one = to_bf16(r * y1[i]), two = to_bf16(r * y2[i]);
        bool is_key = scale == 0.0f;
        // The key as the cache has it.
        to[j] = is_key ? to_float(one) : r * y1[i] * scale;
        to[j + D / 2] = is_key ? to_float(two) : r * y2[i] * scale;
        if (cache) cache[j] = one, cache[j + D / 2] = two;
    }
}

// A block has a head of the query and some of the pages.
template <int D> __device__ __forceinline__ void attend(
    Space& space, const Phase& p, const Position& at, int phase) {
    const int V = 8, LANES = D / V, AT_ONCE = PROGRAM_THREADS / LANES, N = (SPLIT_PAGES * PAGE + AT_ONCE - 1) / AT_ONCE;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, channel = lane % LANES * V, slot = threadIdx.x / LANES;
    int query = at.query, group = p.h / p.hkv;
    unsigned tag = at.base + p.in.x_phase;
    Splits splits(query, p.window);
    float *own_query = space.heads[0], *new_key = space.heads[1], *new_value = space.heads[2];
    for (int item = blockIdx.x; item < p.h * splits.used; item += gridDim.x) {
        int head = item / splits.used, split = item % splits.used, kv_head = head / group;
        int page = splits.first_page + split * splits.each;
        bool has_new = split == splits.used - 1, keeps = has_new && head % group == 0;
        int key = max(splits.first_key, page * PAGE), end = min(query, (page + splits.each) * PAGE);
        Chunk k_chunks[N], v_chunks[N];
        auto load = [&]() {
#pragma unroll
            for (int n = 0; n < N; n++) {
                int own = min(key + n * AT_ONCE + slot, end - 1);
                i64 from = (((i64)p.places[1 + own / PAGE] * p.hkv + kv_head) * PAGE + own % PAGE) * D + channel;
                k_chunks[n] = load_past_l1((const Chunk*)(p.keys + from));
                v_chunks[n] = load_past_l1((const Chunk*)(p.values + from));
            }
        };
        if (key < end) load();
        i64 new_at = has_new ? (((i64)p.places[1 + query / PAGE] * p.hkv + kv_head) * PAGE + query % PAGE) * D : 0;
        if (warp == 0) rotate<D>(own_query, nullptr, p, query, p.in.x + head * D, tag, p.scale * LOG2_E);
        if (has_new && warp == 1) {
            const u64* from = p.in.x + (p.h + kv_head) * D;
            rotate<D>(new_key, keeps ? p.keys + new_at : nullptr, p, query, from, tag, 0.0f);
        }
        if (has_new && warp == 2) {
            for (int j = lane; j < D; j += 32) {
                bf16 narrow = to_bf16(wait_packet(p.in.x + (p.h + p.hkv + kv_head) * D + j, tag));
                new_value[j] = to_float(narrow);
                if (keeps) p.values[new_at + j] = narrow;
            }
        }
        __syncthreads();
        Floats<8> q = Access<8>::get(own_query + channel);
        float acc[V] = {}, sum = 0.0f;
        while (key < end) {
#pragma unroll
            for (int n = 0; n < N; n++) {
                float own[V], score = 0.0f;
                unpack(k_chunks[n], own);
#pragma unroll
                for (int j = 0; j < V; j++) score += q.x[j] * own[j];
#pragma unroll
                for (int mask = LANES / 2; mask > 0; mask >>= 1) score += shfl_xor(score, mask);
                float weight = key + n * AT_ONCE + slot < end ? exp2_fast(score) : 0.0f;
                unpack(v_chunks[n], own);
                sum += weight;
#pragma unroll
                for (int j = 0; j < V; j++) acc[j] += weight * own[j];
            }
            key += N * AT_ONCE;
            if (key < end) load();
        }
        if (has_new && warp == 0) {
            float score = 0.0f;
#pragma unroll
            for (int j = 0; j < V; j++) score += q.x[j] * new_key[channel + j];
#pragma unroll
            for (int mask = LANES / 2; mask > 0; mask >>= 1) score += shfl_xor(score, mask);
            float weight = slot == 0 ? exp2_fast(score) : 0.0f;
            sum += weight;
#pragma unroll
            for (int j = 0; j < V; j++) acc[j] += weight * new_value[channel + j];
        }
#pragma unroll
        for (int mask = LANES; mask < 32; mask <<= 1) {
            sum += shfl_xor(sum, mask);
#pragma unroll
            for (int j = 0; j < V; j++) acc[j] += shfl_xor(acc[j], mask);
        }
        if (lane < LANES) Access<8>::set(space.records[warp] + channel, Floats<8>{
            {acc[0], acc[1], acc[2], acc[3], acc[4], acc[5], acc[6], acc[7]}});
        if (lane == 0) space.records[warp][D] = sum;
        __syncthreads();
        u64* to = p.out + ((i64)head * MOST_SPLITS + split) * (D + 2);
        if (threadIdx.x < D + 2) {
            // The last number fills up a pair.
            float total = 0.0f;
            int own = min((int)threadIdx.x, D);
            for (int i = 0; i < PROGRAM_WARPS; i++) total += space.records[i][own];
            put_packet(to + threadIdx.x, total, at.base + phase);
        }
        __syncthreads();
    }
}

template <int D> __device__ __forceinline__ void program(
    const void* phases, int count, int steps, int* tokens, int* found, void* best, unsigned* epoch, int slots,
    int slot_bytes, int most_k) {
    SHARED
    Space& space = *(Space*)shared;
    if (threadIdx.x == FILLER) {
        space.launch = {(const Phase*)phases, tokens, found, (u64*)best, epoch, count, steps, slots, slot_bytes, most_k, 0};
        space.filler = {0, 0, 0};
        for (int i = 0; i < slots; i++) slot_init(space.full + i);
        slots_are_made();
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * (int)sizeof(Phase) / 4; i += PROGRAM_THREADS) {
        ((unsigned*)space.phases())[i] = ((const unsigned*)phases)[i];
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
                linear_phase(space, p, at, phase);
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
