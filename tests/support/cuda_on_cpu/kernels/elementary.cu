// The elementary functions of ptx.cuh, element by element.
//
// Launch   blocks of THREADS threads, one for each element
#include "ptx.cuh"

KERNEL __launch_bounds__(THREADS) void elementary(const float* a, const float* b, float* powers, float* larger,
                                                  unsigned* halves, unsigned* bfloats, unsigned* larger_halves,
                                                  unsigned* larger_bfloats, Word* pairs, int length) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= length) return;
    powers[i] = exp2_approx(a[i]);
    larger[i] = larger_or_nan(a[i], b[i]);
    const unsigned h = pack_halves(a[i], b[i]), f = pack_bfloats(a[i], b[i]);
    store_streaming(halves + i, h);
    store_streaming(bfloats + i, f);
    larger_halves[i] = larger_halves_or_nan(h, pack_halves(b[i], a[i]));
    larger_bfloats[i] = larger_bfloats_or_nan(f, pack_bfloats(b[i], a[i]));
    store_streaming(pairs + i, (Word)h << 32 | f);
}
