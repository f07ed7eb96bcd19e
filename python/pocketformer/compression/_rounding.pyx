# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The loops of rounding and profiling that numpy would take element by element or hold whole copies for.

Results go to the arrays passed in. Every sum is taken in the order written here and nothing is contracted, so that plain
numpy in the same order gives the same bits (tests/checkpoints/test_rounding.py). The GIL is released.
"""

# Added and subtracted, it leaves the nearest whole number, ties to even, of what is below 2^51: SSE2 rounds no other way.
cdef double WHOLE = 6755399441055744.0  # 1.5 · 2^52

ctypedef fused real:
    float
    double


cdef inline double nearest(double x, double step) noexcept nogil:
    cdef double y = x / step
    y = 127.0 if y > 127.0 else (-127.0 if y < -127.0 else y)
    return (y + WHOLE) - WHOLE


cdef inline double size_of(double x) noexcept nogil:
    return -x if x < 0 else x


cdef inline double first_of_pair(double x, double y, double cost, double share, double other) noexcept nogil:
    """The first of two whole numbers that are to have 128 together, where ``x`` and ``y`` have more: at ``x`` the first
    would cost nothing, as the second would at ``y`` - ``share`` · first. Off by one they cost ``cost`` and ``other``."""
    cdef double sign = -1.0 if x < 0 else 1.0, second = -1.0 if y - share * x < 0 else 1.0
    cdef double left = y - 128.0 * second, slope = share * sign - second  # what is left of y, and what the first takes
    cdef double size = (cost * size_of(x) + other * left * slope) / (cost + other * slope * slope)
    size = 127.0 if size > 127.0 else (1.0 if size < 1.0 else size)
    return sign * ((size + WHOLE) - WHOLE)


cdef int check(str axis, Py_ssize_t size, Py_ssize_t expected) except -1:
    if size != expected:
        raise ValueError(f"{axis} is {size}; it must be {expected}")
    return 0


def rotate(real[:, ::1] x, Py_ssize_t block):
    cdef Py_ssize_t rows = x.shape[0], width = x.shape[1], row, begin, half, i
    cdef real low, high
    cdef real* pair
    if block < 1 or block & (block - 1) or width % block:
        raise ValueError(f"block is {block}; it must be a power of two that divides the last axis, {width}")
    with nogil:
        for row in range(rows):
            half = 1
            while half < block:
                begin = 0
                while begin < width:
                    pair = &x[row, begin]
                    for i in range(half):
                        low, high = pair[i], pair[i + half]
                        pair[i] = low + high
                        pair[i + half] = low - high
                    begin += 2 * half
                half *= 2


def round_to_nearest(
    const double[:, ::1] weight, const double[::1] step, signed char[:, ::1] values, bint pairs=False
):
    cdef Py_ssize_t rows = weight.shape[0], width = weight.shape[1], row, i
    cdef double first, second
    check("step's length", step.shape[0], rows)
    check("values' first axis", values.shape[0], rows)
    check("values' last axis", values.shape[1], width)
    with nogil:
        for row in range(rows):
            for i in range(width):
                values[row, i] = <signed char> nearest(weight[row, i], step[row])
            for i in range(1, width if pairs else 0, 2):
                if size_of(values[row, i - 1]) + size_of(values[row, i]) > 128:
                    first = first_of_pair(weight[row, i - 1] / step[row], weight[row, i] / step[row], 1.0, 0.0, 1.0)
                    second = 128.0 - size_of(first)
                    values[row, i - 1] = <signed char> first
                    values[row, i] = <signed char> (-second if weight[row, i] < 0 else second)


def squared_errors(
    const double[:, ::1] weight, const double[::1] step, const signed char[:, ::1] values, double[::1] errors
):
    cdef Py_ssize_t rows = weight.shape[0], width = weight.shape[1], row, i
    cdef double error, total
    check("step's length", step.shape[0], rows)
    check("values' first axis", values.shape[0], rows)
    check("values' last axis", values.shape[1], width)
    check("errors' length", errors.shape[0], rows)
    with nogil:
        for row in range(rows):
            total = 0
            for i in range(width):
                error = weight[row, i] - values[row, i] * step[row]
                total += error * error
            errors[row] = total


def feed_back(
    const double[:, ::1] weight,
    double[:, ::1] errors,
    const double[:, ::1] shares,
    const double[::1] step,
    signed char[:, ::1] values,
    Py_ssize_t begin,
    Py_ssize_t end,
    bint pairs=False,
):
    cdef Py_ssize_t rows = weight.shape[0], width = weight.shape[1], row, i, j
    cdef double rounded, error, most, second
    cdef double* owed
    cdef const double* share
    check("errors' first axis", errors.shape[0], rows)
    check("errors' last axis", errors.shape[1], width)
    check("shares' first axis", shares.shape[0], width)
    check("shares' last axis", shares.shape[1], width)
    check("step's length", step.shape[0], rows)
    check("values' first axis", values.shape[0], rows)
    check("values' last axis", values.shape[1], width)
    if not 0 <= begin < end <= width:
        raise ValueError(f"begin and end are {begin} and {end}; they must be 0 ≤ begin < end ≤ {width}")
    if pairs and (begin % 2 or end % 2 and end < width):
        raise ValueError(f"begin and end are {begin} and {end}, between the inputs of a pair; give even numbers")
    with nogil:
        for row in range(rows):
            owed = &errors[row, 0]
            for i in range(begin, end):
                rounded = nearest(weight[row, i] + owed[i], step[row])
                if pairs and i % 2:
                    most = 128.0 - size_of(values[row, i - 1])
                    rounded = most if rounded > most else (-most if rounded < -most else rounded)
                elif pairs and i + 1 < end:
                    error = weight[row, i] - rounded * step[row]
                    second = nearest(weight[row, i + 1] + owed[i + 1] + error * shares[i, i + 1], step[row])
                    if size_of(rounded) + size_of(second) > 128:
                        rounded = first_of_pair(
                            (weight[row, i] + owed[i]) / step[row],
                            (weight[row, i + 1] + owed[i + 1] + weight[row, i] * shares[i, i + 1]) / step[row],
                            shares[i, i],
                            shares[i, i + 1],
                            shares[i + 1, i + 1],
                        )
                error = weight[row, i] - rounded * step[row]
                values[row, i] = <signed char> rounded
                owed[i] = error
                share = &shares[i, 0]
                for j in range(i + 1, end):
                    owed[j] += error * share[j]


# Index of the nearest entry of a codebook of int8: its entries are whole numbers, so the borders between two of them are
# halves, and between two borders all numbers have the same index.
cdef inline unsigned char code(double x, double step, const unsigned char* index) noexcept nogil:
    cdef double y = 2 * (x / step)
    cdef int half
    y = 254.0 if y > 254.0 else (-254.0 if y < -254.0 else y)
    half = <int> (y + 256.0)  # not negative: rounds down
    return index[half]


cdef int check_codes(
    Py_ssize_t rows, Py_ssize_t width, const double[:, ::1] step, const unsigned char[::1] index
) except -1:
    check("step's first axis", step.shape[0], rows)
    if step.shape[1] < 1 or width % step.shape[1]:
        raise ValueError(f"step's last axis is {step.shape[1]}; it must divide {width}")
    check("index's length", index.shape[0], 512)
    return 0


def match_codes(
    const double[:, ::1] weight,
    const double[:, ::1] step,
    const unsigned char[::1] index,
    const double[::1] codebook,
    double[:, ::1] products,
    double[:, ::1] squares,
):
    cdef Py_ssize_t rows = weight.shape[0], width = weight.shape[1], row, group, i, size
    cdef double product, square, value
    check_codes(rows, width, step, index)
    check("codebook's length", codebook.shape[0], 256)
    check("products' first axis", products.shape[0], rows)
    check("products' last axis", products.shape[1], step.shape[1])
    check("squares' first axis", squares.shape[0], rows)
    check("squares' last axis", squares.shape[1], step.shape[1])
    size = width // step.shape[1]
    with nogil:
        for row in range(rows):
            for group in range(step.shape[1]):
                product = square = 0
                for i in range(group * size, (group + 1) * size):
                    value = codebook[code(weight[row, i], step[row, group], &index[0])]
                    product += weight[row, i] * value
                    square += value * value
                products[row, group] = product
                squares[row, group] = square


def round_to_codes(
    const double[:, ::1] weight,
    const double[:, ::1] step,
    const unsigned char[::1] index,
    unsigned char[:, ::1] codes,
):
    cdef Py_ssize_t rows = weight.shape[0], width = weight.shape[1], row, group, i, size
    check_codes(rows, width, step, index)
    check("codes' first axis", codes.shape[0], rows)
    check("codes' last axis", codes.shape[1], width)
    size = width // step.shape[1]
    with nogil:
        for row in range(rows):
            for group in range(step.shape[1]):
                for i in range(group * size, (group + 1) * size):
                    codes[row, i] = code(weight[row, i], step[row, group], &index[0])


def feed_back_codes(
    const double[:, ::1] weight,
    double[:, ::1] errors,
    const double[:, ::1] shares,
    const double[:, ::1] step,
    const unsigned char[::1] index,
    const double[::1] codebook,
    unsigned char[:, ::1] codes,
    Py_ssize_t begin,
    Py_ssize_t end,
):
    cdef Py_ssize_t rows = weight.shape[0], width = weight.shape[1], row, i, j, size
    cdef double error
    cdef unsigned char found
    cdef double* owed
    cdef const double* share
    check_codes(rows, width, step, index)
    check("codebook's length", codebook.shape[0], 256)
    check("errors' first axis", errors.shape[0], rows)
    check("errors' last axis", errors.shape[1], width)
    check("shares' first axis", shares.shape[0], width)
    check("shares' last axis", shares.shape[1], width)
    check("codes' first axis", codes.shape[0], rows)
    check("codes' last axis", codes.shape[1], width)
    if not 0 <= begin < end <= width:
        raise ValueError(f"begin and end are {begin} and {end}; they must be 0 ≤ begin < end ≤ {width}")
    size = width // step.shape[1]
    with nogil:
        for row in range(rows):
            owed = &errors[row, 0]
            for i in range(begin, end):
                found = code(weight[row, i] + owed[i], step[row, i // size], &index[0])
                error = weight[row, i] - codebook[found] * step[row, i // size]
                codes[row, i] = found
                owed[i] = error
                share = &shares[i, 0]
                for j in range(i + 1, end):
                    owed[j] += error * share[j]


def improve_codes(
    double[:, ::1] gradient,
    const double[:, ::1] moments,
    const double[:, ::1] scale,
    const unsigned char[::1] index,
    const double[::1] codebook,
    unsigned char[:, ::1] codes,
):
    cdef Py_ssize_t rows = codes.shape[0], width = codes.shape[1], row, i, j, size, changed = 0
    cdef double step, value, moved
    cdef unsigned char found
    cdef double* slope
    cdef const double* moment
    check_codes(rows, width, scale, index)
    check("codebook's length", codebook.shape[0], 256)
    check("gradient's first axis", gradient.shape[0], rows)
    check("gradient's last axis", gradient.shape[1], width)
    check("moments' first axis", moments.shape[0], width)
    check("moments' last axis", moments.shape[1], width)
    size = width // scale.shape[1]
    with nogil:
        for row in range(rows):
            slope = &gradient[row, 0]
            for i in range(width):
                step = scale[row, i // size]
                if step <= 0:
                    continue
                value = codebook[codes[row, i]] * step
                found = code(value + slope[i] / moments[i, i], step, &index[0])
                if found == codes[row, i]:
                    continue
                moved = codebook[found] * step - value
                codes[row, i] = found
                changed += 1
                moment = &moments[i, 0]
                for j in range(width):
                    slope[j] -= moved * moment[j]
    return changed


def observe(const float[:, ::1] x, float[::1] highest, double[::1] total, double[::1] squares):
    cdef Py_ssize_t rows = x.shape[0], width = x.shape[1], row, i
    cdef float size
    check("highest's length", highest.shape[0], width)
    check("total's length", total.shape[0], width)
    check("squares' length", squares.shape[0], width)
    with nogil:
        for row in range(rows):
            for i in range(width):
                size = x[row, i] if x[row, i] >= 0 else -x[row, i]
                highest[i] = size if size > highest[i] else highest[i]
                total[i] += size
                squares[i] += <double> size * size
