// What every kernel is written with: element types, vectors, sums over a warp and a block.
//
// The same source is compiled twice: by NVRTC for a GPU, and by a C++ compiler with NANOCHAT_SHIM,
// where `shim.h` runs the threads of a block as fibers on a CPU. Hence the house rules: shared memory
// is dynamic (SHARED), warps are full, intrinsics come from this file or from `mma.cuh`, and every
// kernel is listed in `KERNELS(...)` at the end of its file, or in `KERNELS_TOGETHER(...)` where its blocks
// wait for each other.
#pragma once

#ifdef NANOCHAT_SHIM
#include "shim.h"
#else
// Shared memory of the block, as many bytes as the launch asks for.
#define SHARED extern __shared__ __align__(1024) unsigned char shared[];
#define KERNELS(...)
#define KERNELS_TOGETHER(...)
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
__device__ __forceinline__ float shfl_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
__device__ __forceinline__ int shfl_xor(int x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
__device__ __forceinline__ float shfl(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
__device__ __forceinline__ int shfl(int x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
// 2^x and 1 / (1 + 2^x) as fast as the unit gives them, within 2^-22.
__device__ __forceinline__ float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ float reciprocal_fast(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
__device__ __forceinline__ unsigned bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float float_of(unsigned x) { return __uint_as_float(x); }
#endif

#ifdef NANOCHAT_SHIM
inline float reciprocal_fast(float x) { return 1.0f / x; }
#endif

// A kernel that is launched early (`Grid::early`) begins when every block of the one before it has begun
// and called `let_next_begin`, or ended. Every thread of it calls `wait_for_earlier`, which returns when the
// one before has ended, and so those before that; until then it may touch only what was there before the
// step: weights, ids, keys and values of earlier steps. The first kernel of a step therefore lets the next
// begin after its own wait. Before compute capability 9.0 nothing is early.
#if defined(NANOCHAT_SHIM) || __CUDA_ARCH__ < 900
__device__ __forceinline__ void wait_for_earlier() {}
__device__ __forceinline__ void let_next_begin() {}
#else
__device__ __forceinline__ void wait_for_earlier() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#endif

typedef long long i64;

// The upper half of a float.
struct bf16 { unsigned short bits; };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return float_of((unsigned)x.bits << 16); }

// To the nearest, ties to even; not-a-number stays one.
__device__ __forceinline__ bf16 to_bf16(float x) {
#ifdef NANOCHAT_SHIM
    unsigned u = bits_of(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{0x7fff};
    return bf16{(unsigned short)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
#else
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#endif
}
__device__ __forceinline__ void put(float* to, float x) { *to = x; }
__device__ __forceinline__ void put(bf16* to, float x) { *to = to_bf16(x); }

// V elements that lie together, as one access where V is 4: 16 bytes of float, 8 of bf16.
template <int V> struct Floats { float x[V]; };
struct __align__(8) Two32 { float x, y; };
struct __align__(16) Four32 { float x[4]; };
struct __align__(8) Four16 { bf16 x[4]; };
struct __align__(16) Eight16 { bf16 x[8]; };

template <int V> struct Access;
template <> struct Access<1> {
    template <class T> static __device__ __forceinline__ Floats<1> get(const T* p) { return {{to_float(*p)}}; }
    template <class T> static __device__ __forceinline__ void set(T* p, Floats<1> v) { put(p, v.x[0]); }
};
template <> struct Access<4> {
    static __device__ __forceinline__ Floats<4> get(const float* p) {
        Four32 v = *(const Four32*)p;
        return {{v.x[0], v.x[1], v.x[2], v.x[3]}};
    }
    static __device__ __forceinline__ Floats<4> get(const bf16* p) {
        Four16 v = *(const Four16*)p;
        return {{to_float(v.x[0]), to_float(v.x[1]), to_float(v.x[2]), to_float(v.x[3])}};
    }
    static __device__ __forceinline__ void set(float* p, Floats<4> v) {
        *(Four32*)p = Four32{{v.x[0], v.x[1], v.x[2], v.x[3]}};
    }
    static __device__ __forceinline__ void set(bf16* p, Floats<4> v) {
        *(Four16*)p = Four16{{to_bf16(v.x[0]), to_bf16(v.x[1]), to_bf16(v.x[2]), to_bf16(v.x[3])}};
    }
};
template <> struct Access<8> {
    template <class T> static __device__ __forceinline__ Floats<8> get(const T* p) {
        Floats<4> lo = Access<4>::get(p), hi = Access<4>::get(p + 4);
        return {{lo.x[0], lo.x[1], lo.x[2], lo.x[3], hi.x[0], hi.x[1], hi.x[2], hi.x[3]}};
    }
    template <class T> static __device__ __forceinline__ void set(T* p, Floats<8> v) {
        Access<4>::set(p, {{v.x[0], v.x[1], v.x[2], v.x[3]}});
        Access<4>::set(p + 4, {{v.x[4], v.x[5], v.x[6], v.x[7]}});
    }
};

// Sum and maximum over the 32 lanes, in every lane, in a fixed order.
__device__ __forceinline__ float warp_sum(float x) {
    for (int mask = 16; mask > 0; mask >>= 1) x += shfl_xor(x, mask);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int mask = 16; mask > 0; mask >>= 1) x = fmaxf(x, shfl_xor(x, mask));
    return x;
}

// Sum over the block, in every thread, in a fixed order; `space` holds 32 floats.
__device__ __forceinline__ float block_sum(float x, float* space) {
    int warps = blockDim.x / 32, lane = threadIdx.x % 32;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) space[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(lane < warps ? space[lane] : 0.0f);
}
__device__ __forceinline__ float block_max(float x, float* space) {
    int warps = blockDim.x / 32, lane = threadIdx.x % 32;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) space[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_max(lane < warps ? space[lane] : -INFINITY);
}

// Number of this thread in the launch, and of threads in it: a kernel walks its elements by them.
__device__ __forceinline__ i64 thread_index() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ i64 thread_count() { return (i64)gridDim.x * blockDim.x; }

// tanh within 2^-21 of its value's scale: 1 - 2 / (1 + e^2x).
__device__ __forceinline__ float tanh_fast(float x) {
    float e = exp2_fast(fminf(x * 2.8853900817779268f, 126.0f));
    return 1.0f - 2.0f / (1.0f + e);
}
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
