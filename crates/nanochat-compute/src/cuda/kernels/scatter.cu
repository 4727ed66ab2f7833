// Gradients of tables: rows are added to by id, in the order of positions, whatever the launch.
//
// A stable counting sort, then one block for each id: positions are cut into chunks of CHUNK; each
// block ranks its positions among those of the same id (`rank_ids`), ids are counted by chunk, the
// counts become offsets (`scan_chunks` over the chunks of an id, `scan_ids` over the ids), and every
// position gets its place (`place_ids`).
#include "device.cuh"

// Positions of a block of rank_ids and place_ids: threads of it.
#define CHUNK 1024

// count (chunks, vocab) holds zeros before; rank (n). Shared: 4 CHUNK bytes.
extern "C" __global__ void rank_ids(int* count, int* rank, const int* ids, int n, int vocab) {
    SHARED
    int* own = (int*)shared;
    int at = blockIdx.x * CHUNK + threadIdx.x;
    int id = at < n ? ids[at] : -1;
    own[threadIdx.x] = id;
    __syncthreads();
    if (id < 0 || id >= vocab) return;
    int before = 0;
    for (int i = 0; i < threadIdx.x; i++) before += own[i] == id;
    rank[at] = before;
    atomicAdd(count + (i64)blockIdx.x * vocab + id, 1);
}

// count becomes, for each chunk, how often the id stands in earlier chunks; total (vocab) in all.
extern "C" __global__ void scan_chunks(int* count, int* total, int chunks, int vocab) {
    int id = blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= vocab) return;
    int sum = 0;
    for (int chunk = 0; chunk < chunks; chunk++) {
        int* at = count + (i64)chunk * vocab + id;
        int own = *at;
        *at = sum;
        sum += own;
    }
    total[id] = sum;
}

// start (vocab + 1): where the positions of an id begin. One block of CHUNK threads. Shared: 4 CHUNK.
extern "C" __global__ void scan_ids(int* start, const int* total, int vocab) {
    SHARED
    int* sums = (int*)shared;
    int each = (vocab + CHUNK - 1) / CHUNK, first = threadIdx.x * each;
    int sum = 0;
    for (int i = first; i < first + each && i < vocab; i++) sum += total[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    // Each thread adds up those before it: 1,024 reads of shared memory, once a step.
    int before = 0;
    for (int i = 0; i < threadIdx.x; i++) before += sums[i];
    for (int i = first; i < first + each && i < vocab; i++) {
        start[i] = before;
        before += total[i];
    }
    if (threadIdx.x == CHUNK - 1) start[vocab] = before;
}

// order (n): positions sorted by id, those of one id in their own order.
extern "C" __global__ void place_ids(
    int* order, const int* ids, const int* rank, const int* count, const int* start, int n, int vocab) {
    int at = blockIdx.x * CHUNK + threadIdx.x;
    int id = at < n ? ids[at] : -1;
    if (id < 0 || id >= vocab) return;
    order[start[id] + count[(i64)blockIdx.x * vocab + id] + rank[at]] = at;
}

// table[id] += sum over its positions p of gate[p, channel / d] x[p]; gate may be absent (null).
// One block for each id; threads walk the channels.
template <class T, int V> __device__ __forceinline__ void add_rows(
    float* table, const T* x, const float* gate, const int* order, const int* start, int c, int d) {
    int id = blockIdx.x, first = start[id], end = start[id + 1];
    if (first == end) return;
    for (int at = threadIdx.x * V; at < c; at += blockDim.x * V) {
        Floats<V> sum;
        for (int i = 0; i < V; i++) sum.x[i] = 0.0f;
#pragma unroll 4
        for (int k = first; k < end; k++) {
            i64 p = order[k];
            Floats<V> v = Access<V>::get(x + p * c + at);
            float g = gate ? gate[p * (c / d) + at / d] : 1.0f;
            for (int i = 0; i < V; i++) sum.x[i] += g * v.x[i];
        }
        Floats<V> old = Access<V>::get(table + (i64)id * c + at);
        for (int i = 0; i < V; i++) old.x[i] += sum.x[i];
        Access<V>::set(table + (i64)id * c + at, old);
    }
}

#define SCATTER(T, V, SUFFIX) \
extern "C" __global__ void add_rows_##SUFFIX(float* table, const T* x, const float* gate, const int* order, const int* start, int c, int d) { add_rows<T, V>(table, x, gate, order, start, c, d); } \
KERNELS(add_rows_##SUFFIX)

SCATTER(float, 1, f32x1)
SCATTER(float, 4, f32x4)
SCATTER(bf16, 1, bf16x1)
SCATTER(bf16, 4, bf16x4)

KERNELS(rank_ids, scan_chunks, scan_ids, place_ids)
