// Rows in 16-byte vectors, whatever the address of their first element is.
//
// A row of C elements that starts `shift` elements behind a 16-byte boundary is laid on vectors that start at that
// boundary: position p is class p - shift, and the row ends at position shift + C. Vectors that the row fills are read
// and written whole; the first and the last one may hang over and go element by element.
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
    // Which elements of the vector at a position the row holds: those of [from, upto).
    DEVICE int from(Long position) const { return position < shift ? (int)(shift - position) : 0; }
    DEVICE int upto(Long position) const {
        return end - position >= PER_VECTOR<T> ? PER_VECTOR<T> : end > position ? (int)(end - position) : 0;
    }
    DEVICE int count(Long position) const {
        return upto(position) > from(position) ? upto(position) - from(position) : 0;
    }
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

// Where a result is written: a row of the logits' own type, or of float for 16-bit logits if the caller asks for it.
template <class T>
struct Output {
    using Real = typename Working<T>::Type;
    void* row;
    bool wide;

    DEVICE Output(void* base, Long index, Long stride, bool wide)
        : row((char*)base + index * stride * (Long)(wide ? sizeof(Real) : sizeof(T))), wide(wide) {}

    // Values of the vector at a position of the span. It goes out whole where the output lies on a boundary, too.
    DEVICE void store(const Span<T>& span, Long position, const Real (&values)[PER_VECTOR<T>]) const {
        if (sizeof(Real) != sizeof(T) && wide)
            store_as<Real>(span, position, values);
        else
            store_as<T>(span, position, values);
    }

    template <class U>
    DEVICE void store_as(const Span<T>& span, Long position, const Real (&values)[PER_VECTOR<T>]) const {
        U* place = (U*)row + (position - span.shift);
        if (span.fills(position) && (Word)place % 16 == 0) {
#pragma unroll
            for (int part = 0; part < PER_VECTOR<T> / PER_VECTOR<U>; ++part) {
                Vector v = {};
#pragma unroll
                for (int i = 0; i < PER_VECTOR<U>; ++i)
                    set_element(v, i, narrowed<U>(values[part * PER_VECTOR<U> + i]));
                store_vector(place + part * PER_VECTOR<U>, v);
            }
        } else {
#pragma unroll
            for (int i = 0; i < PER_VECTOR<T>; ++i)
                if (span.holds(position + i)) place[i] = narrowed<U>(values[i]);
        }
    }

    DEVICE void store_one(Long j, Real value) const {
        if (sizeof(Real) != sizeof(T) && wide)
            ((Real*)row)[j] = value;
        else
            ((T*)row)[j] = narrowed<T>(value);
    }
};
