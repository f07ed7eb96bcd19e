# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The choice of a token from the logits of a vocabulary.

Nothing is allocated, and every sum is taken in float64 in the order written here: plain numpy in the same order makes
the same choice (tests/tasks/test_sampling.py). Exponentials are the core's, which are the same on every CPU. The GIL is
released.
"""

from libc.stdint cimport int32_t, uint8_t, uint64_t

cdef enum:
    SEEN = 1
    WRITTEN = 2


cdef int check(str name, Py_ssize_t size, Py_ssize_t expected) except -1:
    if size != expected:
        raise ValueError(f"{name} has {size} entries; there are {expected} logits")
    return 0


def uniform(uint64_t seed, uint64_t step):
    cdef uint64_t z = seed + (step + 1) * <uint64_t> 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t> 0x94D049BB133111EB
    z = z ^ (z >> 31)
    return <double> (z >> 11) * (1.0 / 9007199254740992.0)


def penalize(float[::1] logits, const uint8_t[::1] marks, float repetition, float presence):
    cdef Py_ssize_t count = logits.shape[0], i
    check("marks", marks.shape[0], count)
    with nogil:
        for i in range(count):
            if marks[i] & SEEN:
                logits[i] = logits[i] / repetition if logits[i] > 0 else logits[i] * repetition
            if marks[i] & WRITTEN:
                logits[i] -= presence


def best(const float[::1] logits):
    cdef Py_ssize_t count = logits.shape[0], i, top = 0
    if count == 0:
        raise ValueError("logits has 0 entries; it must have at least 1")
    with nogil:
        for i in range(1, count):
            if logits[i] > logits[top]:
                top = i
    return top


def divide(float[::1] logits, float temperature):
    cdef Py_ssize_t i
    with nogil:
        for i in range(logits.shape[0]):
            logits[i] = logits[i] / temperature


cdef inline bint before(const float[::1] p, int32_t a, int32_t b) noexcept nogil:
    return p[a] > p[b] or (p[a] == p[b] and a < b)


cdef void sink(const float[::1] p, int32_t[::1] heap, Py_ssize_t at, Py_ssize_t count) noexcept nogil:
    cdef int32_t moved = heap[at]
    cdef Py_ssize_t child
    while True:
        child = 2 * at + 1
        if child >= count:
            break
        if child + 1 < count and before(p, heap[child + 1], heap[child]):
            child += 1
        if not before(p, heap[child], moved):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = moved


def draw(const float[::1] p, int32_t[::1] order, Py_ssize_t top_k, double top_p, double min_p, double u):
    cdef Py_ssize_t count = p.shape[0], left = count, wanted, kept = 0, i
    cdef int32_t top
    cdef double total = 0, limit, sum = 0, least = 0
    cdef bint all_of_k = 0 < top_k < count and top_p < 1  # whose sum top_p is a share of
    check("order", order.shape[0], count)
    if count == 0:
        raise ValueError("p has 0 entries; it must have at least 1")
    wanted = count if top_k <= 0 or top_k > count else top_k
    with nogil:
        if wanted == count and top_p >= 1 and min_p <= 0:
            for i in range(count):
                total += p[i]
            limit = u * total
            kept = -1
            for i in range(count):
                if p[i] > 0:
                    kept = i
                    sum += p[i]
                    if sum > limit:
                        break
            top = <int32_t> kept
        else:
            # A heap with the likeliest on top; what leaves it stands behind it, likeliest last.
            for i in range(count):
                order[i] = <int32_t> i
            i = count // 2
            while i > 0:
                i -= 1
                sink(p, order, i, count)
            limit = 1.0
            if wanted == count:
                limit = 0
                for i in range(count):
                    limit += p[i]
                limit *= top_p
            while kept < wanted:
                top = order[0]
                if kept == 0:
                    least = min_p * p[top]
                elif p[top] <= 0 or (not all_of_k and p[top] < least) or (wanted == count and total >= limit):
                    break
                total += p[top]
                kept += 1
                left -= 1
                order[0] = order[left]
                order[left] = top
                sink(p, order, 0, left)
            if all_of_k:
                limit = total * top_p
                i, total = 0, 0
                while i < kept and (i == 0 or (total < limit and p[order[count - 1 - i]] >= least)):
                    total += p[order[count - 1 - i]]
                    i += 1
                kept = i
            limit = u * total
            i = 0
            top = order[count - 1]
            while i < kept:
                top = order[count - 1 - i]
                sum += p[top]
                if sum > limit:
                    break
                i += 1
    return top
