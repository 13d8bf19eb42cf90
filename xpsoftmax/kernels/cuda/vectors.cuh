// Rows in 16-byte vectors, whatever the address of their first element is.
#pragma once
#include "numbers.cuh"

template <class T>
constexpr int PER_VECTOR = 16 / sizeof(T);

template <class T>
DEVICE T element(const Vector& v, int i) {
    if constexpr (sizeof(T) == 2)
        return T{(unsigned short)(v.words[i / 2] >> (i % 2 * 16))};
    else if constexpr (sizeof(T) == 4)
        return __uint_as_float(v.words[i]);
    else
        return __hiloint2double((int)v.words[2 * i + 1], (int)v.words[2 * i]);
}

DEVICE void set_element(Vector& v, int i, float x) { v.words[i] = __float_as_uint(x); }
DEVICE void set_element(Vector& v, int i, double x) {
    v.words[2 * i] = (unsigned)__double2loint(x);
    v.words[2 * i + 1] = (unsigned)__double2hiint(x);
}
DEVICE void set_bits(Vector& v, int i, unsigned short bits) {
    const int place = i % 2 * 16;
    v.words[i / 2] = (v.words[i / 2] & ~(0xffffu << place)) | ((unsigned)bits << place);
}
DEVICE void set_element(Vector& v, int i, Half x) { set_bits(v, i, x.bits); }
DEVICE void set_element(Vector& v, int i, Bfloat x) { set_bits(v, i, x.bits); }

// All numbers of a vector, in the working precision.
template <class T>
DEVICE void unpack(const Vector& v, typename Working<T>::Type (&x)[PER_VECTOR<T>]) {
#pragma unroll
    for (int i = 0; i < PER_VECTOR<T>; ++i) x[i] = element<T>(v, i);
}
template <>
DEVICE void unpack<Half>(const Vector& v, float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) unpack_halves(v.words[i], x[2 * i], x[2 * i + 1]);
}
template <>
DEVICE void unpack<Bfloat>(const Vector& v, float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) unpack_bfloats(v.words[i], x[2 * i], x[2 * i + 1]);
}

// A vector of numbers that are rounded to its type, from x[first] on.
template <class T, int MANY>
DEVICE Vector packed(const typename Working<T>::Type (&x)[MANY], int first = 0) {
    Vector v = {};
#pragma unroll
    for (int i = 0; i < PER_VECTOR<T>; ++i) set_element(v, i, x[first + i]);
    return v;
}
template <>
DEVICE Vector packed<Half, 8>(const float (&x)[8], int) {
    Vector v;
#pragma unroll
    for (int i = 0; i < 4; ++i) v.words[i] = pack_halves(x[2 * i], x[2 * i + 1]);
    return v;
}
template <>
DEVICE Vector packed<Bfloat, 8>(const float (&x)[8], int) {
    Vector v;
#pragma unroll
    for (int i = 0; i < 4; ++i) v.words[i] = pack_bfloats(x[2 * i], x[2 * i + 1]);
    return v;
}

// The largest number of some vectors, nan if there is one. Pairs of 16 bits are compared as pairs.
template <class T>
struct Tops {
    using Real = typename Working<T>::Type;
    Real top = -Limits<Real>::infinity();
    DEVICE void add(const Vector& v) {
        Real x[PER_VECTOR<T>];
        unpack<T>(v, x);
#pragma unroll
        for (int width = PER_VECTOR<T> / 2; width > 0; width /= 2)
#pragma unroll
            for (int i = 0; i < width; ++i) x[i] = larger(x[i], x[i + width]);
        top = larger(top, x[0]);
    }
    DEVICE Real value() const { return top; }
};
template <>
struct Tops<Half> {
    unsigned pair = 0xfc00fc00u;
    DEVICE void add(const Vector& v) {
        const unsigned half = larger_halves_or_nan(v.words[0], v.words[1]);
        pair = larger_halves_or_nan(pair, larger_halves_or_nan(half, larger_halves_or_nan(v.words[2], v.words[3])));
    }
    DEVICE float value() const {
        float low, high;
        unpack_halves(pair, low, high);
        return larger(low, high);
    }
};
template <>
struct Tops<Bfloat> {
    unsigned pair = 0xff80ff80u;
    DEVICE void add(const Vector& v) {
        const unsigned half = larger_bfloats_or_nan(v.words[0], v.words[1]);
        pair = larger_bfloats_or_nan(pair, larger_bfloats_or_nan(half, larger_bfloats_or_nan(v.words[2], v.words[3])));
    }
    DEVICE float value() const {
        float low, high;
        unpack_bfloats(pair, low, high);
        return larger(low, high);
    }
};

// A vector of -inf: exp of it is 0, and it is never the largest.
template <class T>
DEVICE Vector impossible() {
    Vector v = {};
#pragma unroll
    for (int i = 0; i < PER_VECTOR<T>; ++i)
        set_element(v, i, narrowed<T>(-Limits<typename Working<T>::Type>::infinity()));
    return v;
}

// The parts of a row of C elements: whole vectors, which begin at a 16-byte boundary, and the elements before and behind
// them, the edges. How many threads and vectors a row takes does not depend on where it lies: at most C / PER_VECTOR are whole.
template <class T>
struct Parts {
    static constexpr int PER = PER_VECTOR<T>;
    const T* row;
    int classes, head;  // head: elements before the first boundary

    DEVICE Parts(const T* row, Long classes) : row(row), classes((int)classes) {
        const int before = (int)((0 - (Word)row) % 16 / sizeof(T));
        head = before < classes ? before : (int)classes;
    }
    DEVICE int vectors() const { return (int)((unsigned)(classes - head) / PER); }  // whole ones
    DEVICE int tail() const { return (int)((unsigned)(classes - head) % PER); }     // elements behind the last one
    DEVICE const T* vector(int number) const { return row + head + (Long)number * PER; }
    // The class of an edge: there are 2 PER, of which the row has `head` at the beginning and `tail` from PER on. Or -1.
    DEVICE int edge(int number) const {
        if (number < PER) return number < head ? number : -1;
        return number - PER < tail() ? classes - tail() + (number - PER) : -1;
    }
};

// A row of units (units.cuh), of which each thread has one vector. Vectors lie on 16-byte boundaries: the row begins
// `shift` elements behind one, so that position p is unit p - shift and the row ends at position shift + C. Vectors that the
// row fills are read and written whole; the first and the last one may hang over and go element by element.
template <class T>
struct Span {
    const T* boundary;  // the 16-byte boundary at or before the first element
    int shift;          // elements between the two
    Long end;           // position after the last class

    DEVICE Span(const T* first, Long classes)
        : shift((int)((Word)first % 16 / sizeof(T))), end(shift + classes) {
        boundary = first - shift;
    }
    DEVICE bool holds(Long position) const { return position >= shift && position < end; }
    DEVICE bool fills(Long position) const { return position >= shift && position + PER_VECTOR<T> <= end; }
    DEVICE bool touches(Long position) const { return position < end && position + PER_VECTOR<T> > shift; }

    // The vector at a position; -inf where the row does not reach.
    DEVICE Vector load(Long position) const {
        if (fills(position)) return load_vector(boundary + position);
        Vector v;
#pragma unroll
        for (int i = 0; i < PER_VECTOR<T>; ++i) {
            set_element(v, i, narrowed<T>(-Limits<typename Working<T>::Type>::infinity()));
            if (holds(position + i)) set_element(v, i, boundary[position + i]);
        }
        return v;
    }

    // The same elements of another row, which may lie differently on its boundaries.
    DEVICE Vector load_beside(const T* first, Long position) const {
        const T* place = first + (position - shift);
        if (fills(position) && (Word)place % 16 == 0) return load_vector(place);
        Vector v = {};
#pragma unroll
        for (int i = 0; i < PER_VECTOR<T>; ++i)
            if (holds(position + i)) set_element(v, i, place[i]);
        return v;
    }
};

// Where a result is written.
template <class T>
struct Output {
    T* row;

    DEVICE Output(T* base, Long index, Long stride) : row(base + index * stride) {}

    // Values of the vector at a position of the span. It goes out whole where the output lies on a boundary, too.
    DEVICE void store(const Span<T>& span, Long position, const T (&values)[PER_VECTOR<T>]) const {
        T* place = row + (position - span.shift);
        if (span.fills(position) && (Word)place % 16 == 0) {
            store_vector(place, packed<T>(values));
        } else {
#pragma unroll
            for (int i = 0; i < PER_VECTOR<T>; ++i)
                if (span.holds(position + i)) place[i] = values[i];
        }
    }
};
