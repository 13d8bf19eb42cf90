// CUDA on a CPU: what xpsoftmax/kernels/cuda/ptx.cuh and the language itself give a kernel, for g++.
//
// A CUDA thread is a fiber (fibers.cpp). It goes on until it has to wait for others: at a barrier, at a shuffle, at a
// barrier of the cluster. What this cannot show: weak memory order, the inline PTX itself, limits of a launch, and the
// last bit of the GPU's exp and log.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

using Long = long long;
using Word = unsigned long long;

#define DEVICE inline
#define KERNEL static
#define __launch_bounds__(...)
#define __restrict__
#define CLUSTER(blocks)
// Shared memory belongs to a block and a declaration; a static object marks the declaration.
#define SHARED_ARRAY(T, name, size)  \
    static const char name##_mark = 0; \
    T* const name = (T*)on_cpu::shared(&name##_mark, sizeof(T) * (size))

namespace on_cpu {  // fibers.cpp
int thread();
int block();
int grid();
int rank();
void fail(const char* why);
void* shared(const void* mark, size_t bytes);
void* remote(void* local, int rank);
void block_barrier();
void warp_barrier();
void cluster_arrive();
void cluster_wait();
void exchange(const void* mine, void* other, int bytes, int step);

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
    operator int() const { return grid(); }
};
}  // namespace on_cpu

static struct {
    on_cpu::ThreadIndex x;
} threadIdx;
static struct {
    on_cpu::BlockIndex x;
} blockIdx;
static struct {
    on_cpu::GridSize x;
} gridDim;

inline void __syncthreads() { on_cpu::block_barrier(); }
inline void __syncwarp() { on_cpu::warp_barrier(); }
template <class T>
T __shfl_xor_sync(unsigned, T mine, int step) {
    T other;
    on_cpu::exchange(&mine, &other, sizeof mine, step);
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
inline Vector load_vector(const void* address) {
    Vector v = {{~0u, ~0u, ~0u, ~0u}};
    if ((uintptr_t)address % 16)
        on_cpu::fail("a 16-byte load from an address that is no multiple of 16");
    else
        memcpy(&v, address, 16);
    return v;
}
inline void store_vector(void* address, Vector v) {
    if ((uintptr_t)address % 16)
        on_cpu::fail("a 16-byte store to an address that is no multiple of 16");
    else
        memcpy(address, &v, 16);
}
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

inline int cluster_rank() { return on_cpu::rank(); }
inline void cluster_arrive() { on_cpu::cluster_arrive(); }
inline void cluster_wait() { on_cpu::cluster_wait(); }
inline void store_remote(Word* local, int rank, Word value) {
    if (void* there = on_cpu::remote(local, rank)) memcpy(there, &value, sizeof value);
}

inline void store_streaming(void* address, Vector v) { store_vector(address, v); }
inline unsigned pack_halves(float low, float high) { return float_to_half(low) | (unsigned)float_to_half(high) << 16; }
inline unsigned rounded_to_bfloat(float x) {
    const unsigned bits = __float_as_uint(x);
    return x == x ? (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 : 0x7fffu;
}
inline unsigned pack_bfloats(float low, float high) { return rounded_to_bfloat(low) | rounded_to_bfloat(high) << 16; }
inline void unpack_halves(unsigned pair, float& low, float& high) {
    low = half_to_float((unsigned short)pair), high = half_to_float((unsigned short)(pair >> 16));
}
inline void unpack_bfloats(unsigned pair, float& low, float& high) {
    low = __uint_as_float(pair << 16), high = __uint_as_float(pair & 0xffff0000u);
}
inline float exp2_approx(float x) { return exp2f(x); }
inline float larger_or_nan(float a, float b) { return a != a ? a : b != b ? b : std::fmax(a, b); }
inline unsigned larger_halves_or_nan(unsigned a, unsigned b) {
    float al, ah, bl, bh;
    unpack_halves(a, al, ah), unpack_halves(b, bl, bh);
    return pack_halves(larger_or_nan(al, bl), larger_or_nan(ah, bh));
}
inline unsigned larger_bfloats_or_nan(unsigned a, unsigned b) {
    float al, ah, bl, bh;
    unpack_bfloats(a, al, ah), unpack_bfloats(b, bl, bh);
    return pack_bfloats(larger_or_nan(al, bl), larger_or_nan(ah, bh));
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
