// What has no name in plain CUDA C++ without NVIDIA's headers: a few instructions, as inline PTX.
//
// The only header that does not compile as C++; tests/cuda_on_cpu/ptx.h says the same for a CPU.
#pragma once

using Long = long long;
using Word = unsigned long long;

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__
#define SHARED_ARRAY(T, name, size) __shared__ T name[size]

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

// The compiler must not keep what it computed from these bits before: it would hold twice the registers.
DEVICE void forget(Vector& v) {
    asm volatile("" : "+r"(v.words[0]), "+r"(v.words[1]), "+r"(v.words[2]), "+r"(v.words[3]));
}

#if __CUDA_ARCH__ >= 900
#define CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)

DEVICE int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

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
#endif
