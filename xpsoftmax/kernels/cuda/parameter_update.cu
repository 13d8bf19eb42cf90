// Updates of parameters by an optimiser, all in one launch. A parameter is p; a and b are the arrays that the optimiser keeps
// for it. The rule computes new p, a and b from the old ones, the gradient g and the numbers of this update.
//
// Layout   vectors of `length` entries. a and b are null where the rule keeps less. The new values are written to other arrays,
//          or to the same ones. *ok is 0 if a loss was not finite: the new values are then the old ones. A null `ok` stands
//          for 1. The numbers of the rule are row *which of `rows_of_numbers`, or n0 to n7 where
//          that is null.
// Launch   -D RULE, a name of rules.cuh, SCALAR (float or double), THREADS, and EACH: entries of a thread.
// Traffic  every array read once; all but g written once.
#include "rules.cuh"
#include "tables.cuh"

using Scalar = SCALAR;

struct Parameter {
    const Scalar *p, *a, *b, *g;
    Scalar *new_p, *new_a, *new_b;
    Long length, end;
};

KERNEL __launch_bounds__(THREADS) void parameter_update(const GRID_CONSTANT Table<Parameter> table, const unsigned char* ok,
                                                        const Scalar* rows_of_numbers, const Long* which, Scalar n0,
                                                        Scalar n1, Scalar n2, Scalar n3, Scalar n4, Scalar n5, Scalar n6,
                                                        Scalar n7) {
    const Share share(table);
    const Parameter& of = table.items[share.item];
    const bool changes = ok == nullptr || *ok != 0;
    if (!changes && of.p == of.new_p) return;

    Numbers<Scalar> numbers{{n0, n1, n2, n3, n4, n5, n6, n7}};
    if (rows_of_numbers != nullptr) {
#pragma unroll
        for (int k = 0; k < 8; ++k) numbers.n[k] = rows_of_numbers[*which * 8 + k];
    }
    // All entries are read before the first one is written: otherwise each read would wait for the write before it, which may
    // be to the same place for all that the compiler knows.
    const Long first = share.block * (THREADS * EACH) + threadIdx.x;
    Entry<Scalar> x[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        const Long i = first + k * THREADS;
        if (i < of.length) x[k] = {of.p[i], of.a != nullptr ? of.a[i] : 0, of.b != nullptr ? of.b[i] : 0, of.g[i]};
    }
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        const Long i = first + k * THREADS;
        if (i >= of.length) return;
        if (changes) rules::RULE(x[k], numbers);
        of.new_p[i] = x[k].p;
        if (of.a != nullptr) of.new_a[i] = x[k].a;
        if (of.b != nullptr) of.new_b[i] = x[k].b;
    }
}
