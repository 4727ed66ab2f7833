// Runs CUDA kernels on a CPU: what NVRTC gives to a kernel, given by C++17 instead.
//
// Compile one file that includes every .cu (or each .cu by itself) with
//   c++ -O2 -std=c++17 -fPIC -shared -DNANOCHAT_SHIM
// and launch by name through `nanochat_shim_launch`, the same arguments as `cuLaunchKernel`.
//
// Blocks run one after the other, those of kernels in KERNELS_TOGETHER all at once. The threads of a block are fibers that run until they wait: in
// `__syncthreads`, or in an intrinsic of a whole warp (shuffle, ldmatrix, mma). This checks what
// a lucky run on a GPU may hide:
//   - shared memory is filled with 0xFF (not-a-number) before each block;
//   - asynchronous copies land as late as allowed, when they are waited for, or at once (`eager`);
//   - so do products of wgmma, whose operands in shared memory are read as late;
//   - with a seed, warps run in random order and one of them runs very rarely, for a while each;
//   - lanes that wait in different intrinsics, deadlocks, barriers that an exited thread misses,
//     writes past the end of shared memory and launches beyond the limits of CUDA abort.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct Dimensions {
    unsigned x, y, z;
};
inline Dimensions threadIdx, blockIdx, blockDim, gridDim;

// ---------------------------------------------------------------------------------------------
// Fibers
// ---------------------------------------------------------------------------------------------
namespace shim {

const size_t STACK_BYTES = 256 << 10;  // of address space; what is not touched costs nothing
const size_t GUARD_BYTES = 64 << 10;   // below each stack: running over it faults at once

#if defined(__x86_64__)
// Leaves the running stack, remembered in `*from`, for the stack `to`, whose top is an address to
// go on from. Every register but rbp and rsp is declared lost, so the compiler saves what it needs.
__attribute__((noinline)) inline void switch_stack(void** from, void* to) {
    asm volatile(
        "subq $128, %%rsp\n\t"  // the compiler may use 128 bytes below rsp
        "pushq %%rbp\n\t"
        "leaq 1f(%%rip), %%rax\n\t"
        "pushq %%rax\n\t"
        "movq %%rsp, (%0)\n\t"
        "movq %1, %%rsp\n\t"
        "popq %%rax\n\t"
        "jmp *%%rax\n"
        "1:\n\t"
        "popq %%rbp\n\t"
        "addq $128, %%rsp\n\t"
        : "+D"(from), "+S"(to)
        :
        : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0",
          "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
          "xmm12", "xmm13", "xmm14", "xmm15", "memory", "cc");
}
// A stack that starts `entry` when switched to.
inline void* new_stack(char* end, void (*entry)()) {
    void** top = (void**)end - 2;  // `entry` expects rsp to be 8 past a multiple of 16
    *top = (void*)entry;
    return top;
}
#elif defined(__aarch64__)
__attribute__((noinline)) inline void switch_stack(void** from_, void* to_) {
    register void** from asm("x0") = from_;
    register void* to asm("x1") = to_;
    asm volatile(
        "stp x29, x30, [sp, #-16]!\n\t"
        "adr x9, 1f\n\t"
        "str x9, [sp, #-16]!\n\t"
        "mov x9, sp\n\t"
        "str x9, [%0]\n\t"
        "mov sp, %1\n\t"
        "ldr x9, [sp], #16\n\t"
        "br x9\n"
        "1:\n\t"
        "ldp x29, x30, [sp], #16\n\t"
        : "+r"(from), "+r"(to)
        :
        : "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15",
          "x16", "x17", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "v0",
          "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14",
          "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27",
          "v28", "v29", "v30", "v31", "memory", "cc");
}
inline void* new_stack(char* end, void (*entry)()) {
    void** top = (void**)end - 2;
    *top = (void*)entry;
    return top;
}
#else
}  // namespace shim
#include <ucontext.h>
namespace shim {
// Other processors: slower, since each switch is a system call.
inline std::vector<ucontext_t*> spare_contexts;
inline ucontext_t* new_context() {
    if (spare_contexts.empty()) return new ucontext_t;
    ucontext_t* context = spare_contexts.back();
    spare_contexts.pop_back();
    return context;
}
inline void switch_stack(void** from, void* to) {
    ucontext_t* here = new_context();
    *from = here;
    swapcontext(here, (ucontext_t*)to);
    spare_contexts.push_back(here);
}
inline void* new_stack(char* end, void (*entry)()) {
    ucontext_t* context = new_context();
    getcontext(context);
    context->uc_stack.ss_sp = end - (STACK_BYTES / 2);
    context->uc_stack.ss_size = STACK_BYTES / 2;
    makecontext(context, entry, 0);
    return context;
}
#endif

// ---------------------------------------------------------------------------------------------
// A block of threads
// ---------------------------------------------------------------------------------------------

// An asynchronous copy that has not landed; zeros where `from` is null.
struct Copy {
    unsigned char* to;
    const void* from;
    int group, bytes;
};

struct Thread {
    void* at = nullptr;  // stack to go on with
    int stack = -1;      // -1 before the thread starts and after it ends
    std::vector<Copy> copies;
    int group = 0;  // of the next copy
    bool unfenced = false;  // copies have landed that wgmma may not see yet
};

struct Warp {
    unsigned ready = 0;    // lanes that may run
    unsigned arrived = 0;  // lanes that wait in `operation`
    void (*operation)(void**) = nullptr;
    void* operands[32];
    int products = 0;  // of wgmma that are not done
};

struct Kernel {
    void (*function)();
    void (*call)(void (*function)(), void** arguments);
    bool together = false;  // its blocks wait for each other
};

// A block that runs.
struct Block {
    Dimensions index;
    int waiting = 0;                    // threads that wait in __syncthreads
    std::vector<unsigned char> memory;  // shared memory, within
    unsigned char* shared = nullptr;
};

// Bulk copies that a barrier in shared memory waits for.
struct Bulk {
    int expected = -1, asked = 0;
    std::vector<Copy> copies;
};

struct State {
    std::mutex busy;
    unsigned random = 0;  // state of the generator; 0: plain order
    bool eager = false;           // asynchronous copies land at once
    bool eager_products = false;  // products of wgmma are done at once

    const char* name = "";
    Kernel kernel;
    void** arguments;
    int running;              // threads that have not ended
    int current;              // thread that runs
    void* scheduler;          // its stack
    int slow_warp, slow_for;  // which warp is held back, and for how many turns yet
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<char*> stacks;
    std::vector<int> free_stacks;
    std::vector<Block> blocks;           // that run at the same time
    unsigned char* shared = nullptr;     // of the running thread's block
    std::map<void*, Bulk> bulks;         // by barrier
    long spins;                          // turns of threads that ask again
};
inline State state;

[[noreturn]] inline void fail(const char* what) {
    fprintf(stderr, "shim: kernel %s, block (%u, %u, %u), thread %d: %s\n", state.name, blockIdx.x,
            blockIdx.y, blockIdx.z, state.current, what);
    fflush(stderr);
    abort();
}

inline void wait() { switch_stack(&state.threads[state.current].at, state.scheduler); }

// What every lane of a warp does together: the last one to arrive runs `operation` for all, which
// gets an operand from each lane.
inline void with_warp(void (*operation)(void**), void* operand) {
    Warp& warp = state.warps[state.current / 32];
    unsigned self = 1u << (state.current % 32);
    if (warp.arrived != 0 && warp.operation != operation) fail("lanes of a warp wait in different intrinsics");
    warp.operation = operation;
    warp.operands[state.current % 32] = operand;
    warp.arrived |= self;
    if (warp.arrived != 0xffffffffu) return wait();
    warp.arrived = 0;
    operation(warp.operands);
    warp.ready = ~self;
}

inline void with_block() {
    int threads = (int)blockDim.x, number = state.current / threads, warps = threads / 32;
    Block& block = state.blocks[number];
    if (++block.waiting < threads) return wait();
    block.waiting = 0;
    for (int i = 0; i < warps; i++) state.warps[number * warps + i].ready = 0xffffffffu;
    state.warps[state.current / 32].ready &= ~(1u << (state.current % 32));
}

// Gives way to whoever this thread waits for.
inline void spin() {
    if (++state.spins > 400000000L) fail("a thread asks again and again for what does not come");
    state.warps[state.current / 32].ready |= 1u << (state.current % 32);
    wait();
}

// Runs a thread from its start to its end, on its own stack; never returns.
inline void thread_main() {
    state.kernel.call(state.kernel.function, state.arguments);
    Thread& thread = state.threads[state.current];
    if (state.warps[state.current / 32].products != 0) fail("a thread ends before its products of wgmma are done");
    state.free_stacks.push_back(thread.stack);  // nobody takes it before the switch below
    thread.stack = -1;
    state.running--;
    wait();
    fail("a thread that has ended runs again");
}

inline int take_stack() {
    if (state.free_stacks.empty()) {
        void* p = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
        if (p == MAP_FAILED || mprotect(p, GUARD_BYTES, PROT_NONE) != 0) fail("no memory for a stack");
        state.free_stacks.push_back((int)state.stacks.size());
        state.stacks.push_back((char*)p);
    }
    int stack = state.free_stacks.back();
    state.free_stacks.pop_back();
    return stack;
}

// Runs the thread until it waits. A thread takes a stack when it starts and leaves it when it ends,
// so that threads which never wait all use the same one, whose memory is then in the cache.
inline void run_thread(int i) {
    Thread& thread = state.threads[i];
    state.current = i;
    Block& block = state.blocks[i / (int)blockDim.x];
    threadIdx = {(unsigned)i % blockDim.x, 0, 0};
    blockIdx = block.index;
    state.shared = block.shared;
    if (thread.stack < 0) {
        thread.stack = take_stack();
        // Tops that differ in their low bits: else all stacks fall on the same lines of the cache.
        size_t shift = (size_t)thread.stack * 320 % 16384;
        char* end = state.stacks[thread.stack] + STACK_BYTES - shift;
        thread.at = new_stack(end, thread_main);
    }
    switch_stack(&state.scheduler, thread.at);
}

inline unsigned random_below(unsigned n) {
    unsigned& x = state.random;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return (x * 2654435761u >> 8) % n;
}

// Gives every lane of the warp that may run a turn; with a seed, some of them in some order.
inline void run_warp(Warp& warp, int first) {
    unsigned turn = warp.ready, rotation = 0;
    if (state.random != 0) {
        rotation = random_below(32);
        if (random_below(4) == 0) turn &= random_below(1u << 16) << 16 | random_below(1u << 16);
    }
    for (unsigned i = 0; i < 32; i++) {
        unsigned lane = (i + rotation) % 32;
        if ((turn >> lane & 1) == 0) continue;
        warp.ready &= ~(1u << lane);
        run_thread(first + (int)lane);
    }
}

// The warp to run next after the warp `last`, or -1 if none may run.
inline int next_warp(int last) {
    int n = (int)state.warps.size();
    int start = state.random != 0 ? (int)random_below(n) : last + 1;
    if (state.random != 0 && state.slow_for-- <= 0) {
        state.slow_warp = (int)random_below(n);
        state.slow_for = 2000 + (int)random_below(20000);
    }
    int fallback = -1;
    for (int i = 0; i < n; i++) {
        int w = (start + i) % n;
        if (state.warps[w].ready == 0) continue;
        bool held = state.random != 0 && w == state.slow_warp && random_below(512) != 0;
        if (!held) return w;
        fallback = w;
    }
    return fallback;
}

[[noreturn]] inline void stuck() {
    int in_intrinsics = 0;
    for (Warp& warp : state.warps) in_intrinsics += __builtin_popcount(warp.arrived);
    char text[160];
    int ended = (int)state.threads.size() - state.running, waiting = 0;
    for (Block& block : state.blocks) waiting += block.waiting;
    snprintf(text, sizeof text, "deadlock: %d threads wait in __syncthreads, %d in a warp's intrinsic, %d have ended",
             waiting, in_intrinsics, ended);
    fail(text);
}

inline void run_blocks() {
    for (Warp& warp : state.warps) warp.ready = 0xffffffffu, warp.arrived = 0;
    for (Thread& thread : state.threads) thread.copies.clear(), thread.group = 0, thread.unfenced = false;
    state.running = (int)state.threads.size();
    for (Block& block : state.blocks) block.waiting = 0;
    state.bulks.clear();
    state.spins = 0;
    state.slow_for = 0;
    int warp = -1;
    while (state.running > 0) {
        warp = next_warp(warp);
        if (warp < 0) stuck();
        run_warp(state.warps[warp], warp * 32);
    }
}

const size_t CANARY_BYTES = 256;

inline void poison_shared(Block& block, size_t bytes) {
    block.memory.resize(bytes + CANARY_BYTES + 1024);
    block.shared = (unsigned char*)(((uintptr_t)block.memory.data() + 1023) / 1024 * 1024);
    memset(block.shared, 0xff, bytes);
    memset(block.shared + bytes, 0xa5, CANARY_BYTES);
}
inline void check_shared(const Block& block, size_t bytes) {
    for (size_t i = 0; i < CANARY_BYTES; i++) {
        if (block.shared[bytes + i] != 0xa5) fail("a write past the end of shared memory");
    }
}

// ---------------------------------------------------------------------------------------------
// Kernels by name
// ---------------------------------------------------------------------------------------------

inline std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

template <class... A, size_t... I>
void call_with(void (*function)(A...), void** arguments, std::index_sequence<I...>) {
    function(*(A*)arguments[I]...);
}
template <class... A> Kernel kernel_of(void (*function)(A...)) {
    auto call = [](void (*f)(), void** arguments) {
        call_with((void (*)(A...))f, arguments, std::index_sequence_for<A...>());
    };
    return {(void (*)())function, call};
}

// `names`: those of `functions`, between commas.
template <class... F> bool register_kernels(bool together, const char* names, F... functions) {
    for (Kernel kernel : {kernel_of(functions)...}) {
        kernel.together = together;
        names += strspn(names, ", \t\n");
        size_t length = strcspn(names, ", \t\n");
        kernels()[std::string(names, length)] = kernel;
        names += length;
    }
    return true;
}

inline int launch(const char* name, const unsigned grid[3], unsigned block, size_t shared, void** arguments) {
    auto found = kernels().find(name);
    bool allowed = block > 0 && block <= 1024 && block % 32 == 0 && shared <= 227 << 10 && grid[0] > 0 &&
                   grid[0] <= 0x7fffffffu && grid[1] > 0 && grid[1] <= 65535 && grid[2] > 0 && grid[2] <= 65535;
    if (found == kernels().end() || !allowed) return 1;
    state.name = found->first.c_str();
    state.kernel = found->second;
    state.arguments = arguments;
    unsigned all = grid[0] * grid[1] * grid[2], at_once = state.kernel.together ? all : 1;
    state.threads.resize(block * at_once);
    state.warps.resize(block / 32 * at_once);
    state.blocks.resize(at_once);
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block, 1, 1};
    for (unsigned first = 0; first < all; first += at_once) {
        for (unsigned i = 0; i < at_once; i++) {
            unsigned number = first + i;
            state.blocks[i].index = {number % grid[0], number / grid[0] % grid[1], number / grid[0] / grid[1]};
            poison_shared(state.blocks[i], shared);
        }
        run_blocks();
        for (const Block& ran : state.blocks) check_shared(ran, shared);
    }
    return 0;
}

}  // namespace shim

#define SHIM_JOIN_(a, b) a##b
#define SHIM_JOIN(a, b) SHIM_JOIN_(a, b)
#define KERNELS(...) \
    static const bool SHIM_JOIN(kernels_registered_, __COUNTER__) = shim::register_kernels(false, #__VA_ARGS__, __VA_ARGS__);
#define KERNELS_TOGETHER(...) \
    static const bool SHIM_JOIN(kernels_registered_, __COUNTER__) = shim::register_kernels(true, #__VA_ARGS__, __VA_ARGS__);

// Runs a kernel to its end. `arguments` points to each argument, as for `cuLaunchKernel`.
// Returns 1 for a name that no KERNELS lists, or a size that CUDA would refuse.
extern "C" __attribute__((used, weak, visibility("default"))) int nanochat_shim_launch(
    const char* name, const unsigned grid[3], unsigned block, size_t shared_bytes, void** arguments) {
    std::lock_guard<std::mutex> lock(shim::state.busy);
    return shim::launch(name, grid, block, shared_bytes, arguments);
}

// `seed`: 0 for warps in turn, else for a random order. `eager`: 1 if asynchronous copies land at once,
// 2 if products of wgmma are done at once, 3 for both.
extern "C" __attribute__((used, weak, visibility("default"))) void nanochat_shim_mode(unsigned seed, int eager) {
    std::lock_guard<std::mutex> lock(shim::state.busy);
    shim::state.random = seed;
    shim::state.eager = (eager & 1) != 0;
    shim::state.eager_products = (eager & 2) != 0;
}

// ---------------------------------------------------------------------------------------------
// What kernels call
// ---------------------------------------------------------------------------------------------

#define SHARED unsigned char* const shared = shim::state.shared;

inline void __syncthreads() { shim::with_block(); }
inline void __threadfence() {}
inline void __syncwarp() {
    shim::with_warp([](void**) {}, nullptr);
}

// Bulk copies land when their barrier is waited for, or, with `eager`, when all its bytes are asked for.
namespace shim {
inline bool land(unsigned long long* full) {
    Bulk& bulk = state.bulks[full];
    if (bulk.expected < 0 || bulk.asked != bulk.expected) return false;
    for (const Copy& copy : bulk.copies) memcpy(copy.to, copy.from, copy.bytes);
    bulk = Bulk();
    ++*full;  // phases that are over
    return true;
}
inline void expect_bytes(unsigned long long* full, int bytes) {
    Bulk& bulk = state.bulks[full];
    if (bulk.expected >= 0) fail("bytes are expected while others are");
    bulk.expected = bytes;
}
inline void bulk_copy(void* to, const void* from, int bytes, unsigned long long* full) {
    if (bytes % 16 != 0 || (uintptr_t)to % 16 != 0 || (uintptr_t)from % 16 != 0) fail("a bulk copy is not aligned");
    Bulk& bulk = state.bulks[full];
    bulk.copies.push_back({(unsigned char*)to, from, 0, bytes});
    bulk.asked += bytes;
    if (state.eager) land(full);
}
inline void wait_bytes(unsigned long long* full, unsigned parity) {
    while ((*full & 1) == parity) {
        if (!land(full)) spin();
    }
}

template <class T> struct Shuffle {
    T value, result;
    int lane;
};
// The value of lane `lane` (of this lane's choice).
template <class T> T shuffle(T value, int lane) {
    Shuffle<T> mine = {value, value, lane & 31};
    with_warp(
        [](void** operands) {
            for (int i = 0; i < 32; i++) {
                Shuffle<T>* to = (Shuffle<T>*)operands[i];
                to->result = ((Shuffle<T>*)operands[to->lane])->value;
            }
        },
        &mine);
    return mine.result;
}
}  // namespace shim

inline float shfl(float x, int lane) { return shim::shuffle(x, lane); }
inline int shfl(int x, int lane) { return shim::shuffle(x, lane); }
inline float shfl_xor(float x, int mask) { return shim::shuffle(x, (int)threadIdx.x % 32 ^ mask); }
inline int shfl_xor(int x, int mask) { return shim::shuffle(x, (int)threadIdx.x % 32 ^ mask); }

inline int atomicAdd(int* at, int x) {
    int before = *at;
    *at += x;
    return before;
}

inline unsigned bits_of(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float float_of(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

inline float exp2_fast(float x) { return exp2f(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
