// CUDA on a CPU: what xpsoftmax/kernels/cuda/ptx.cuh and the language itself give a kernel, for g++.
//
// A CUDA thread is a fiber (fibers.cpp). It goes on until it has to wait for others: at a barrier, at a shuffle, at a
// barrier of the cluster, at an mbarrier. What this cannot show: the inline PTX itself, limits of a launch, and the last
// bit of the GPU's exp and log. Weak memory order shows as accesses without order, where a run is watched (watch.h).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

using Long = long long;
using Word = unsigned long long;

#define DEVICE inline
#define KERNEL static
#define GRID_CONSTANT
#define __launch_bounds__(...)
#define __restrict__
#define CLUSTER(blocks)
// Shared memory belongs to a block and a declaration; a static object marks the declaration.
#define SHARED_ARRAY(T, name, size)  \
    static const char name##_mark = 0; \
    T* const name = (T*)on_cpu::shared(&name##_mark, sizeof(T) * (size), alignof(T))
#define DYNAMIC_SHARED_ARRAY(T, name, size)  \
    static const char name##_mark = 0; \
    T* const name = (T*)on_cpu::dynamic_shared(&name##_mark, sizeof(T) * (size))

namespace on_cpu {  // fibers.cpp
int thread();
int block();
int rank();
void fail(const char* why);
extern int grid_size;
void* shared(const void* mark, size_t bytes, size_t alignment);
void* dynamic_shared(const void* mark, size_t bytes);
void read(const void* address, size_t bytes);
void write(const void* address, size_t bytes);
void* remote(const void* local, int rank);
void store_remote(void* local, int rank, const void* value, size_t bytes);
void block_barrier();
void warp_barrier();
void numbered_barrier(int number, int threads);
void cluster_arrive(bool orders_memory);
void cluster_wait();
void exchange(const void* mine, void* other, int bytes, int from);
unsigned fetch_add(unsigned* counter, unsigned value);
unsigned load_acquire(const unsigned* address);
void store_release(unsigned* address, unsigned value);
int exp2_error(unsigned argument);
void mbarrier_init(void* address, unsigned arrivals);  // mbarriers.h
void mbarrier_fence_init();
void mbarrier_invalidate(void* address);
void mbarrier_arrive(void* address, unsigned bytes);
void mbarrier_arrive_remote(void* address);
void mbarrier_wait(void* address, unsigned parity, bool of_cluster);
void store_async(void* place, const void* value, unsigned bytes, void* barrier);
void copy_bulk(void* shared, const void* global, unsigned bytes, void* barrier);
void fence_before_copies();

template <class To, class From>
To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
struct ThreadIndex {
    operator int() const { return thread(); }
};
struct BlockIndex {
    operator int() const { return block(); }
};
struct GridSize {
    operator int() const { return grid_size; }
};
}  // namespace on_cpu

[[maybe_unused]] static struct {
    on_cpu::ThreadIndex x;
} threadIdx;
[[maybe_unused]] static struct {
    on_cpu::BlockIndex x;
} blockIdx;
[[maybe_unused]] static struct {
    on_cpu::GridSize x;
} gridDim;

inline void __syncthreads() { on_cpu::block_barrier(); }
inline void __syncwarp() { on_cpu::warp_barrier(); }
template <class T>
T __shfl_xor_sync(unsigned, T mine, int step) {
    T other;
    on_cpu::exchange(&mine, &other, sizeof mine, (on_cpu::thread() % 32) ^ step);
    return other;
}
template <class T>
T __shfl_sync(unsigned, T mine, int lane) {
    T other;
    on_cpu::exchange(&mine, &other, sizeof mine, lane % 32);
    return other;
}

inline float __uint_as_float(unsigned x) { return on_cpu::same_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return on_cpu::same_bits<unsigned>(x); }
inline double __longlong_as_double(Long x) { return on_cpu::same_bits<double>(x); }
inline double __hiloint2double(int high, int low) {
    return on_cpu::same_bits<double>((Word)(unsigned)high << 32 | (unsigned)low);
}
inline int __double2loint(double x) { return (int)on_cpu::same_bits<Word>(x); }
inline int __double2hiint(double x) { return (int)(on_cpu::same_bits<Word>(x) >> 32); }

struct alignas(16) Vector {
    unsigned words[4];
};
namespace on_cpu {
template <class T>
void store(void* address, T value) {
    if ((uintptr_t)address % sizeof value) return fail("a store to an address that is no multiple of its size");
    write(address, sizeof value);
    memcpy(address, &value, sizeof value);
}
}  // namespace on_cpu

inline Vector load_vector(const void* address) {
    Vector v = {{~0u, ~0u, ~0u, ~0u}};
    if ((uintptr_t)address % 16)
        on_cpu::fail("a 16-byte load from an address that is no multiple of 16");
    else {
        on_cpu::read(address, 16);
        memcpy(&v, address, 16);
    }
    return v;
}
inline void store_vector(void* address, Vector v) { on_cpu::store(address, v); }
inline void store_streaming(void* address, unsigned value) { on_cpu::store(address, value); }
inline void store_streaming(void* address, Word value) { on_cpu::store(address, value); }
inline void store_streaming(void* address, Vector v) { on_cpu::store(address, v); }
inline void forget(Vector&) {}

inline float half_to_float(unsigned short bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 0    ? std::ldexp((float)fraction, -24)
                 : exponent == 31 ? (fraction ? NAN : INFINITY)
                                  : std::ldexp((float)(1024 + fraction), exponent - 25);
    return bits & 0x8000 ? -size : size;
}
inline unsigned short float_to_half(float x) {
    const unsigned sign = __float_as_uint(x) >> 16 & 0x8000u;
    const float size = std::fabs(x);
    if (x != x) return 0x7fff;
    if (size >= 65520.f) return sign | 0x7c00u;
    if (size < 0x1p-14f) return sign | (unsigned)std::nearbyint(size * 0x1p24f);
    unsigned bits = __float_as_uint(size);
    bits += 0xfffu + (bits >> 13 & 1u);  // to nearest, ties to even
    return sign | ((bits >> 13) - (112u << 10));
}

inline unsigned pack_halves(float low, float high) { return float_to_half(low) | (unsigned)float_to_half(high) << 16; }
namespace on_cpu {
inline unsigned bfloat_of(float x) {  // in integers: subnormal numbers stay
    const unsigned b = __float_as_uint(x);
    return (b & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (b + 0x7fffu + (b >> 16 & 1u)) >> 16;
}
inline bool is_nan(unsigned bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }
// In the order of the numbers, -0 before 0, without flushing subnormal ones.
inline int64_t rank_of(unsigned bits) { return bits >> 31 ? -(int64_t)(bits & 0x7fffffffu) - 1 : bits; }
}  // namespace on_cpu
inline unsigned pack_bfloats(float low, float high) { return on_cpu::bfloat_of(low) | on_cpu::bfloat_of(high) << 16; }

// Rounded correctly, and then off by as much as the schedule says, at most 2 ulp.
inline float exp2_approx(float x) {
    if (x != x || x == INFINITY) return x;
    if (x == -INFINITY) return 0;
    if (std::fabs(x) < 0x1p-126f) return 1;
    const float exact = (float)std::exp2((double)x);
    if (std::isinf(exact) || exact == 0) return exact;
    const float off = __uint_as_float(__float_as_uint(exact) + (unsigned)on_cpu::exp2_error(__float_as_uint(x)));
    return off < 0x1p-126f ? 0 : off;
}

inline float larger_or_nan(float a, float b) {
    const unsigned x = __float_as_uint(a), y = __float_as_uint(b);
    if (on_cpu::is_nan(x) || on_cpu::is_nan(y)) return __uint_as_float(0x7fffffffu);
    return on_cpu::rank_of(x) > on_cpu::rank_of(y) ? a : b;
}
inline unsigned larger_halves_or_nan(unsigned a, unsigned b) {
    const float low = larger_or_nan(half_to_float((unsigned short)a), half_to_float((unsigned short)b));
    const float high = larger_or_nan(half_to_float(a >> 16), half_to_float(b >> 16));
    return pack_halves(low, high);
}
inline unsigned larger_bfloats_or_nan(unsigned a, unsigned b) {
    const float low = larger_or_nan(__uint_as_float(a << 16), __uint_as_float(b << 16));
    const float high = larger_or_nan(__uint_as_float(a & 0xffff0000u), __uint_as_float(b & 0xffff0000u));
    return pack_bfloats(low, high);
}

inline void unpack_halves(unsigned pair, float& low, float& high) {
    low = half_to_float((unsigned short)pair), high = half_to_float((unsigned short)(pair >> 16));
}
inline void unpack_bfloats(unsigned pair, float& low, float& high) {
    low = __uint_as_float(pair << 16), high = __uint_as_float(pair & 0xffff0000u);
}
inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline float multiply_add_saturated(float a, float b, float c) {
    const float x = std::fma(a, b, c);
    return x > 0 ? (x < 1 ? x : 1.f) : 0.f;
}
inline unsigned unknown_zero() { return 0; }
inline void set_anew(Vector&, unsigned) {}
template <class T>
T* one_address(T* address) {
    return address;
}
inline int thread_index() { return on_cpu::thread(); }

inline unsigned fetch_add(unsigned* counter, unsigned value) { return on_cpu::fetch_add(counter, value); }
inline unsigned load_acquire(const unsigned* address) { return on_cpu::load_acquire(address); }
inline void store_release(unsigned* address, unsigned value) { on_cpu::store_release(address, value); }
inline void barrier_of(int number, int threads) { on_cpu::numbered_barrier(number, threads); }

inline int cluster_rank() { return on_cpu::rank(); }
inline void cluster_arrive() { on_cpu::cluster_arrive(true); }
inline void cluster_arrive_relaxed() { on_cpu::cluster_arrive(false); }
inline void cluster_wait() { on_cpu::cluster_wait(); }
inline void store_remote(Word* local, int rank, Word value) {
    on_cpu::store_remote(local, rank, &value, sizeof value);
}

struct Mbarrier {
    Word state;
};
struct Remote {
    char* address;
    Remote operator+(unsigned bytes) const { return {address + bytes}; }
};
inline void mbarrier_init(Mbarrier* barrier, unsigned arrivals) { on_cpu::mbarrier_init(barrier, arrivals); }
inline void mbarrier_fence_init() { on_cpu::mbarrier_fence_init(); }
inline void mbarrier_invalidate(Mbarrier* barrier) { on_cpu::mbarrier_invalidate(barrier); }
inline void mbarrier_arrive(Mbarrier* barrier) { on_cpu::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_remote(Remote barrier) { on_cpu::mbarrier_arrive_remote(barrier.address); }
inline void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes) { on_cpu::mbarrier_arrive(barrier, bytes); }
inline void mbarrier_wait(Mbarrier* barrier, unsigned parity) { on_cpu::mbarrier_wait(barrier, parity, false); }
inline void mbarrier_wait_cluster(Mbarrier* barrier, unsigned parity) { on_cpu::mbarrier_wait(barrier, parity, true); }
inline Remote remote_place(const void* local, int rank) { return {(char*)on_cpu::remote(local, rank)}; }
inline void store_async(Remote place, unsigned value, Remote barrier) {
    on_cpu::store_async(place.address, &value, sizeof value, barrier.address);
}
inline void store_async(Remote place, Word value, Remote barrier) {
    on_cpu::store_async(place.address, &value, sizeof value, barrier.address);
}
inline void store_async(Remote place, Vector v, Remote barrier) {
    on_cpu::store_async(place.address, &v, sizeof v, barrier.address);
}
inline void copy_bulk(void* shared, const void* global, unsigned bytes, Mbarrier* barrier) {
    on_cpu::copy_bulk(shared, global, bytes, barrier);
}
inline void fence_before_copies() { on_cpu::fence_before_copies(); }
