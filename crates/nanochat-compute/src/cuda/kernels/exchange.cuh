// How blocks that run at the same time hand each other numbers, and how weights come ahead of their use.
//
// A packet is 8 bytes: a number and a tag, written and read as one. Who reads asks again until the tag is
// that of the phase he waits for: no barrier, no fence, one way through the second-level cache. A tag is
// never used twice, so a packet needs no clearing.
//
// Weights come by bulk copies (compute capability 9.0) into slots of shared memory; a barrier in shared
// memory says when all bytes of a slot are there.
#pragma once
#include "device.cuh"

typedef unsigned long long u64;

struct Packets {
    u64 x, y;
};

// Asks that are in vain before a launch is given up: seconds, where microseconds are the rule.
const unsigned PATIENCE = 1u << 25;

#ifdef NANOCHAT_SHIM
inline void put_bits(u64* to, u64 x) { *to = x; }
inline u64 get_bits(const u64* from) { return *from; }
inline Packets get_two(const u64* from) { return {from[0], from[1]}; }
inline void ask_again(unsigned&) { shim::spin(); }
inline void prefetch(const void*) {}
inline void slot_init(u64* full) { *full = 0; }
inline void slot_expect(u64* full, int bytes) { shim::expect_bytes(full, bytes); }
inline void slot_copy(void* to, const void* from, int bytes, u64* full) { shim::bulk_copy(to, from, bytes, full); }
inline void slot_wait(u64* full, unsigned parity) { shim::wait_bytes(full, parity); }
inline void slots_are_made() {}
template <class T> inline T load_past_l1(const T* from) { return *from; }
#elif __CUDA_ARCH__ >= 900
__device__ __forceinline__ void put_bits(u64* to, u64 x) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(x) : "memory");
}
__device__ __forceinline__ u64 get_bits(const u64* from) {
    u64 x;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(x) : "l"(from));
    return x;
}
__device__ __forceinline__ Packets get_two(const u64* from) {
    Packets two;
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(two.x), "=l"(two.y) : "l"(from));
    return two;
}
__device__ __forceinline__ void ask_again(unsigned& asked) {
    if (++asked == PATIENCE) asm volatile("trap;");
}
__device__ __forceinline__ void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
__device__ __forceinline__ unsigned slot_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void slot_init(u64* full) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(slot_address(full)) : "memory");
}
__device__ __forceinline__ void slot_expect(u64* full, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(slot_address(full)), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void slot_copy(void* to, const void* from, int bytes, u64* full) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     slot_address(to)), "l"(from), "r"(bytes), "r"(slot_address(full)) : "memory");
}
__device__ __forceinline__ void slot_wait(u64* full, unsigned parity) {
    unsigned done = 0, asked = 0;
    while (true) {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(slot_address(full)), "r"(parity) : "memory");
        if (done) return;
        ask_again(asked);
    }
}
__device__ __forceinline__ void slots_are_made() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// 16 bytes that another multiprocessor may have written in this launch, a fence ago.
template <class T> __device__ __forceinline__ T load_past_l1(const T* from) {
    T x;
    unsigned* words = (unsigned*)&x;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "l"(from));
    return x;
}
#endif

#if defined(NANOCHAT_SHIM) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ unsigned tag_of(u64 packet) { return (unsigned)(packet >> 32); }
__device__ __forceinline__ float number_of(u64 packet) { return float_of((unsigned)packet); }
__device__ __forceinline__ void put_packet(u64* to, float x, unsigned tag) {
    put_bits(to, (u64)tag << 32 | bits_of(x));
}
// Waits for a packet that was asked for.
__device__ __forceinline__ float wait_packet(u64 packet, const u64* from, unsigned tag) {
    unsigned asked = 0;
    while (tag_of(packet) != tag) {
        ask_again(asked);
        packet = get_bits(from);
    }
    return number_of(packet);
}

// N pairs of packets, `stride` apart, as far as `end`: asked for together, again while one is missing.
template <int N> struct Pairs {
    Packets own[N];
    __device__ __forceinline__ void ask(const u64* from, int at, int stride, int end) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (at + i * stride < end) own[i] = get_two(from + at + i * stride);
        }
    }
    __device__ __forceinline__ void wait(const u64* from, int at, int stride, int end, unsigned tag) {
        unsigned asked = 0;
        while (true) {
            bool all = true;
#pragma unroll
            for (int i = 0; i < N; i++) {
                if (at + i * stride >= end || (tag_of(own[i].x) == tag && tag_of(own[i].y) == tag)) continue;
                all = false;
                own[i] = get_two(from + at + i * stride);
            }
            if (all) return;
            ask_again(asked);
        }
    }
};
#endif
