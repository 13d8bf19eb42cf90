// A few instructions as inline PTX: plain CUDA C++ has no names for them without NVIDIA's headers.
//
// The only header that does not compile as C++; tests/support/cuda_on_cpu/ptx.h has the same functions for a CPU.
#pragma once

using Long = long long;
using Word = unsigned long long;

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__
// A parameter that is read where the launch put it: the compiler makes no copy of a table for each thread.
#define GRID_CONSTANT __grid_constant__
#define SHARED_ARRAY(T, name, size) __shared__ T name[size]
// The block's dynamic shared memory: the launch must ask for the size in bytes. One such array a kernel.
#define DYNAMIC_SHARED_ARRAY(T, name, size) extern __shared__ __align__(128) T name[]

struct alignas(16) Vector {
    unsigned words[4];
};

// Each logit is read once: it need not push anything out of the first-level cache.
DEVICE Vector load_vector(const void* address) {
    Vector v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
                 : "l"(address)
                 : "memory");
    return v;
}

DEVICE void store_vector(void* address, Vector v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.words[0]), "r"(v.words[1]),
                 "r"(v.words[2]), "r"(v.words[3])
                 : "memory");
}

// Streaming stores, of 4, 8 and 16 bytes: results that are not read again soon leave the caches first.
DEVICE void store_streaming(void* address, unsigned value) {
    asm volatile("st.global.cs.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
DEVICE void store_streaming(void* address, Word value) {
    asm volatile("st.global.cs.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}
DEVICE void store_streaming(void* address, Vector v) {
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.words[0]), "r"(v.words[1]),
                 "r"(v.words[2]), "r"(v.words[3])
                 : "memory");
}

DEVICE float half_to_float(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

DEVICE unsigned short float_to_half(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// Two floats rounded to nearest even, `low` in the lower 16 bits. A nan becomes 0x7fff, or 0x7fc0 before sm_80.
DEVICE unsigned pack_halves(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return float_to_half(low) | (unsigned)float_to_half(high) << 16;
#endif
}

DEVICE unsigned pack_bfloats(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    const unsigned l = __float_as_uint(low), h = __float_as_uint(high);
    const unsigned rounded_low = low == low ? l + 0x7fffu + (l >> 16 & 1u) : 0x7fc00000u;
    const unsigned rounded_high = high == high ? h + 0x7fffu + (h >> 16 & 1u) : 0x7fc00000u;
    return rounded_low >> 16 | (rounded_high & 0xffff0000u);
#endif
}

// 2^x with an error of at most 2 ulp; 0 for a result, and 1 for an argument, that is subnormal.
DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The larger of two numbers; nan if one of them is nan.
DEVICE float larger_or_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
#else
    return a != a ? a : b != b ? b : fmaxf(a, b);
#endif
}

#if __CUDA_ARCH__ >= 800
// The same for both numbers of a pair.
DEVICE unsigned larger_halves_or_nan(unsigned a, unsigned b) {
    unsigned larger;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
}
DEVICE unsigned larger_bfloats_or_nan(unsigned a, unsigned b) {
    unsigned larger;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
    return larger;
}
#else
DEVICE unsigned larger_halves_or_nan(unsigned a, unsigned b) {
    const float low = larger_or_nan(half_to_float((unsigned short)a), half_to_float((unsigned short)b));
    const float high = larger_or_nan(half_to_float(a >> 16), half_to_float(b >> 16));
    return pack_halves(low, high);
}
DEVICE unsigned larger_bfloats_or_nan(unsigned a, unsigned b) {
    const float low = larger_or_nan(__uint_as_float(a << 16), __uint_as_float(b << 16));
    const float high = larger_or_nan(__uint_as_float(a & 0xffff0000u), __uint_as_float(b & 0xffff0000u));
    return pack_bfloats(low, high);
}
#endif

// Both numbers of a pair of half-precision numbers, and of a pair of bfloat16 numbers.
DEVICE void unpack_halves(unsigned pair, float& low, float& high) {
    asm("{\n"
        ".reg .b16 l, h;\n"
        "mov.b32 {l, h}, %2;\n"
        "cvt.f32.f16 %0, l;\n"
        "cvt.f32.f16 %1, h;\n"
        "}"
        : "=f"(low), "=f"(high)
        : "r"(pair));
}
DEVICE void unpack_bfloats(unsigned pair, float& low, float& high) {
    low = __uint_as_float(pair << 16), high = __uint_as_float(pair & 0xffff0000u);
}

// a * b + c, rounded once. The second kind is 0 where that is negative or nan, and 1 where it is larger than 1.
DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float multiply_add_saturated(float a, float b, float c) {
    float x;
    asm("fma.rn.ftz.sat.f32 %0, %1, %2, %3;" : "=f"(x) : "f"(a), "f"(b), "f"(c));
    return x;
}

// A zero that the assembler cannot know to be zero: grids have one dimension here.
DEVICE unsigned unknown_zero() {
    unsigned zero;
    asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(zero));
    return zero;
}
// The same bits, but the assembler does not know that: it cannot hold what it unpacked from them before.
DEVICE void set_anew(Vector& v, unsigned zero) {
    for (unsigned& word : v.words) word ^= zero;
}

// The same address, which the compiler must hold in a register: what lies behind it is at a fixed distance from there.
template <class T>
DEVICE T* one_address(T* address) {
    asm volatile("" : "+l"(address));
    return address;
}

// threadIdx.x, read anew: what follows from it need not be held in registers from one row to the next.
DEVICE int thread_index() {
    int index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}

// A counter in global memory that blocks share. What a block wrote before it adds (its other threads: before a
// __syncthreads) is seen by the block that reads the sum of these additions.
DEVICE unsigned fetch_add(unsigned* counter, unsigned value) {
    unsigned before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(value) : "memory");
    return before;
}
DEVICE unsigned load_acquire(const unsigned* address) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}
DEVICE void store_release(unsigned* address, unsigned value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// A barrier for `threads` threads of the block, whole warps: `number` is 1 to 15 (__syncthreads is number 0).
DEVICE void barrier_of(int number, int threads) {
    asm volatile("barrier.sync.aligned %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// The compiler must not keep what it computed from these bits before: it would hold twice the registers.
DEVICE void forget(Vector& v) {
    asm volatile("" : "+r"(v.words[0]), "+r"(v.words[1]), "+r"(v.words[2]), "+r"(v.words[3]));
}

// A barrier in shared memory. A phase is complete when `arrivals` threads have arrived and all bytes that they
// announced are there; then the next phase begins. The first phase has parity 0, the second 1, the third 0, and so on.
// Somebody must see that a phase is complete before anybody arrives in the next one.
struct Mbarrier {
    Word state;
};

// A place in the shared memory of a block of this cluster.
using Remote = unsigned;

#if __CUDA_ARCH__ >= 900
#define CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)

DEVICE int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
// Cheaper, because it orders no memory: other blocks see no more than the barriers that were initialised before
// mbarrier_fence_init.
DEVICE void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

DEVICE unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// By one thread. Others may use the barrier after mbarrier_fence_init and a __syncthreads; other blocks of the cluster
// after mbarrier_fence_init and a barrier of the cluster.
DEVICE void mbarrier_init(Mbarrier* barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
DEVICE void mbarrier_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Before its memory is used for anything else.
DEVICE void mbarrier_invalidate(Mbarrier* barrier) {
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

DEVICE void mbarrier_arrive(Mbarrier* barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// At a barrier of another block of the cluster, which must wait with mbarrier_wait_cluster.
DEVICE void mbarrier_arrive_remote(Remote barrier) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Announce bytes that store_async and copy_bulk bring (or have brought) in this phase, and arrive.
DEVICE void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

// Wait until the phase of this parity is complete: it must be the present one, or the one before it. Then this thread
// sees what copy_bulk brought and what threads of this block wrote before they arrived.
DEVICE void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "again: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 complete, [%0], %1;\n"
        "@!complete bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}
// The same, and this thread sees what other blocks of the cluster sent with store_async. It costs more: the compiler
// invalidates the first-level cache (CCTL.IVALL).
DEVICE void mbarrier_wait_cluster(Mbarrier* barrier, unsigned parity) {
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 complete, [%0], %1;\n"
        "@!complete bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// Where another block of the cluster has what is at `local` in this one.
DEVICE Remote remote_place(const void* local, int rank) {
    Remote place;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(place) : "r"(shared_address(local)), "r"(rank));
    return place;
}

// Stores of 4, 8 and 16 bytes that complete later, and then report as many bytes to a barrier of the same block as
// `place`. Only in a cluster of at least two blocks; `place` is a multiple of the size.
DEVICE void store_async(Remote place, unsigned value, Remote barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(place), "r"(value),
                 "r"(barrier)
                 : "memory");
}
DEVICE void store_async(Remote place, Word value, Remote barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u64 [%0], %1, [%2];" ::"r"(place), "l"(value),
                 "r"(barrier)
                 : "memory");
}
DEVICE void store_async(Remote place, Vector v, Remote barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                     place),
                 "r"(v.words[0]), "r"(v.words[1]), "r"(v.words[2]), "r"(v.words[3]), "r"(barrier)
                 : "memory");
}

// Starts a copy from global memory to this block's shared memory: addresses and size are multiples of 16 bytes. When
// the bytes are there, it reports them to the barrier.
DEVICE void copy_bulk(void* shared, const void* global, unsigned bytes, Mbarrier* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

// After this, copy_bulk may write where this thread (or others, before a barrier) wrote to shared memory.
DEVICE void fence_before_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Writes to the shared variable of another block of the cluster that `local` is in this one.
DEVICE void store_remote(Word* local, int rank, Word value) {
    unsigned address = (unsigned)__cvta_generic_to_shared(local), there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(there), "l"(value) : "memory");
}
#else
#define CLUSTER(blocks)
DEVICE int cluster_rank() { return 0; }
DEVICE void cluster_arrive() {}
DEVICE void cluster_wait() {}
DEVICE void store_remote(Word*, int, Word) {}

// Declared only: a kernel that uses them compiles for no architecture that lacks them.
__device__ void cluster_arrive_relaxed();
__device__ void mbarrier_init(Mbarrier*, unsigned);
__device__ void mbarrier_fence_init();
__device__ void mbarrier_invalidate(Mbarrier*);
__device__ void mbarrier_arrive(Mbarrier*);
__device__ void mbarrier_arrive_remote(Remote);
__device__ void mbarrier_arrive_expect(Mbarrier*, unsigned);
__device__ void mbarrier_wait(Mbarrier*, unsigned);
__device__ void mbarrier_wait_cluster(Mbarrier*, unsigned);
__device__ Remote remote_place(const void*, int);
__device__ void store_async(Remote, unsigned, Remote);
__device__ void store_async(Remote, Word, Remote);
__device__ void store_async(Remote, Vector, Remote);
__device__ void copy_bulk(void*, const void*, unsigned, Mbarrier*);
__device__ void fence_before_copies();
#endif
