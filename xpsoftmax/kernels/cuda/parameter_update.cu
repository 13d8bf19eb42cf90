// Update of a parameter by an optimiser: p, and the arrays a and b that are kept for it, from its gradient g.
//
// Layout   vectors of `length` entries; a and b are null where the rule keeps less. Nothing changes where *ok is 0 (null:
//          it is 1): the host has not looked at the loss of this gradient. The numbers of the rule are row *which of
//          `table`, or n0 to n7 where there is no table.
// Launch   -D RULE, a name of rules.cuh, SCALAR (float or double) and THREADS; a thread an entry.
// Traffic  every array read once, all but g written once.
#include "rules.cuh"

using Scalar = SCALAR;

KERNEL __launch_bounds__(THREADS) void parameter_update(Scalar* p, Scalar* a, Scalar* b, const Scalar* g,
                                                        const unsigned char* ok, Long length, const Scalar* table,
                                                        const Long* which, Scalar n0, Scalar n1,
                                                        Scalar n2, Scalar n3, Scalar n4, Scalar n5, Scalar n6, Scalar n7) {
    const Long i = (Long)blockIdx.x * THREADS + threadIdx.x;
    if (i >= length || (ok != nullptr && *ok == 0)) return;
    Entry<Scalar> x{p[i], a != nullptr ? a[i] : 0, b != nullptr ? b[i] : 0, g[i]};
    Numbers<Scalar> numbers{{n0, n1, n2, n3, n4, n5, n6, n7}};
    if (table != nullptr) {
#pragma unroll
        for (int k = 0; k < 8; ++k) numbers.n[k] = table[*which * 8 + k];
    }
    rules::RULE(x, numbers);
    p[i] = x.p;
    if (a != nullptr) a[i] = x.a;
    if (b != nullptr) b[i] = x.b;
}
