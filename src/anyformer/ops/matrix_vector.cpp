// A matrix times one vector, which takes as long as reading the matrix, and the norm of a vector. matrix_vector.py and
// rms_norm.py beside this file call it.
//
// A core waits for memory most of the time, so what counts is how many reads are under way: a matrix is read from eight
// places at once, each going on by itself, and a little ahead.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

typedef float Vector __attribute__((vector_size(64)));

constexpr int LANES = 16, STREAMS = 8, AHEAD = 128;  // ahead: numbers that are asked for before they are needed
constexpr int64_t BLOCK = 64;  // rows that stay in the nearest cache while many vectors meet them

inline Vector load(const float* from) {
    Vector lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

template <typename Half, typename Whole> inline Half halved(const Whole& lanes) {
    Half low, high;
    std::memcpy(&low, &lanes, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&lanes) + sizeof low, sizeof high);
    return low + high;
}

// By halves: one lane after the other would take longer than reading a short row.
inline float sum(Vector lanes) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    const Four four = halved<Four>(halved<Eight>(lanes));
    return (four[0] + four[2]) + (four[1] + four[3]);
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// y = W x for neighbouring rows and some vectors x; those of y lie y_row apart.
template <int vectors>
void rows_times_vectors(const float* w, int64_t rows, int64_t width, const float* x, float* y, int64_t y_row) {
    constexpr int streams = vectors > 2 ? STREAMS / 2 : STREAMS;  // as many sums as there are registers
    const int64_t part = rows / streams;
    for (int64_t row = 0; row < part; ++row) {
        Vector sums[streams][vectors] = {};
        for (int64_t i = 0; i < width; i += LANES) {
#pragma GCC unroll 8
            for (int s = 0; s < streams; ++s) {
                const float* at = w + (s * part + row) * width + i;
                __builtin_prefetch(at + AHEAD);
                const Vector numbers = load(at);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; ++v) sums[s][v] += numbers * load(x + v * width + i);
            }
        }
        for (int s = 0; s < streams; ++s)
            for (int v = 0; v < vectors; ++v) y[v * y_row + s * part + row] = sum(sums[s][v]);
    }
    for (int64_t row = part * streams; row < rows; ++row)
        for (int v = 0; v < vectors; ++v) {
            Vector sums{};
            for (int64_t i = 0; i < width; i += LANES) sums += load(w + row * width + i) * load(x + v * width + i);
            y[v * y_row + row] = sum(sums);
        }
}

// y += x W for neighbouring rows and some vectors x, which lie x_row apart; count times as many columns as there are lanes.
template <int vectors, int count>
void vectors_times_columns(const float* w, int64_t rows, int64_t width, const float* x, int64_t x_row, float* y) {
    constexpr int sets = vectors == 1 ? 2 : 1;  // where there is one vector, one addition would wait for the other
    const int64_t part = rows / STREAMS;
    Vector sums[sets][vectors][count] = {};
    const auto add = [&](int set, int64_t row) {
        const float* at = w + row * width;
#pragma GCC unroll 4
        for (int k = 0; k < count; ++k) {
            __builtin_prefetch(at + k * LANES + AHEAD);
            const Vector numbers = load(at + k * LANES);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sums[set][v][k] += numbers * x[v * x_row + row];
        }
    };
    for (int64_t row = 0; row < part; ++row)
#pragma GCC unroll 8
        for (int s = 0; s < STREAMS; ++s) add(s % sets, s * part + row);
    for (int64_t row = part * STREAMS; row < rows; ++row) add(0, row);
    for (int v = 0; v < vectors; ++v)
        for (int k = 0; k < count; ++k) {
            float* to = y + v * width + k * LANES;
            const Vector total = load(to) + (sets == 1 ? sums[0][v][k] : sums[0][v][k] + sums[sets - 1][v][k]);
            std::memcpy(to, &total, sizeof total);
        }
}

template <int vectors>
void vectors_times_rows(const float* w, int64_t rows, int64_t width, const float* x, int64_t x_row, float* y) {
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES)
        vectors_times_columns<vectors, 4>(w + i, rows, width, x, x_row, y + i);
    for (; i < width; i += LANES) vectors_times_columns<vectors, 1>(w + i, rows, width, x, x_row, y + i);
}

// Calls work(first vector, how many as a constant) for a group of vectors, as many at a time as registers hold.
template <typename Work> void each_few(int64_t group, Work work) {
    int64_t v = 0;
    for (; v + 4 <= group; v += 4) work(v, std::integral_constant<int, 4>());
    if (group - v == 3) work(v, std::integral_constant<int, 3>());
    if (group - v == 2) work(v, std::integral_constant<int, 2>());
    if (group - v == 1) work(v, std::integral_constant<int, 1>());
}

// Each of some heads has a matrix, (rows, width), and a group of vectors; matrices lie head_stride apart. Their rows are
// split into parts, so that all threads have as much to do.
struct Sizes {
    int64_t heads, group, rows, width, head_stride, parts, threads;
};

template <typename Work> void each_part(const Sizes& sizes, Work work) {
#pragma omp parallel for schedule(static) num_threads(int(sizes.threads)) if (sizes.threads > 1)
    for (int64_t task = 0; task < sizes.heads * sizes.parts; ++task) {
        const int64_t head = task / sizes.parts, part = task % sizes.parts;
        const int64_t first = sizes.rows * part / sizes.parts, last = sizes.rows * (part + 1) / sizes.parts;
        const int64_t step = sizes.group <= 4 ? last - first : BLOCK;
        for (int64_t row = first; row < last; row += step) work(task, head, row, least(step, last - row));
    }
}

// Scores of a head, scaled, become weights that sum to 1.
void softmax(float* scores, int64_t count, float scale) {
    float highest = -INFINITY, total = 0;
    for (int64_t i = 0; i < count; ++i) highest = scores[i] > highest || scores[i] != scores[i] ? scores[i] : highest;
    for (int64_t i = 0; i < count; ++i) total += scores[i] = std::exp((scores[i] - highest) * scale);
    for (int64_t i = 0; i < count; ++i) scores[i] /= total;
}

}  // namespace

// y (heads, group, rows): each matrix's rows times each vector of x (heads, group, width). A single one may have a bias and
// an addend.
extern "C" void rows_of(Sizes sizes, const float* w, const float* x, const float* bias, const float* add, float* y) {
    each_part(sizes, [&](int64_t, int64_t head, int64_t row, int64_t count) {
        const float* from = w + head * sizes.head_stride + row * sizes.width;
        float* to = y + head * sizes.group * sizes.rows + row;
        each_few(sizes.group, [&](int64_t v, auto few) {
            const float* vectors = x + (head * sizes.group + v) * sizes.width;
            rows_times_vectors<few>(from, count, sizes.width, vectors, to + v * sizes.rows, sizes.rows);
        });
        for (int64_t i = 0; bias && i < count; ++i) to[i] += bias[row + i];
        for (int64_t i = 0; add && i < count; ++i) to[i] += add[row + i];
    });
}

// y (heads, group, width): the sum of each matrix's rows with the weights x (heads, group, rows).
extern "C" void columns_of(Sizes sizes, const float* w, const float* x, float* y) {
    const int64_t of_head = sizes.group * sizes.width;
    std::vector<float> sums(sizes.heads * sizes.parts * of_head);
    each_part(sizes, [&](int64_t task, int64_t head, int64_t row, int64_t count) {
        const float* from = w + head * sizes.head_stride + row * sizes.width;
        each_few(sizes.group, [&](int64_t v, auto few) {
            const float* factors = x + (head * sizes.group + v) * sizes.rows + row;
            vectors_times_rows<few>(
                from, count, sizes.width, factors, sizes.rows, &sums[task * of_head + v * sizes.width]
            );
        });
    });
    for (int64_t head = 0; head < sizes.heads; ++head)
        for (int64_t i = 0; i < of_head; ++i) {
            float total = 0;
            for (int64_t part = 0; part < sizes.parts; ++part) total += sums[(head * sizes.parts + part) * of_head + i];
            y[head * of_head + i] = total;
        }
}

// Writes a token's keys, (heads, width), and values into a slot of a cache, and gives for each query, (heads, group, width), the
// softmax attention to the first slots. Sizes are those of the keys; the values have value_width numbers.
extern "C" void attend_token(
    Sizes sizes, int64_t value_width, int64_t slot, float scale, const float* q, const float* k, const float* v, float* keys,
    float* values, float* y
) {
    Sizes of_values = sizes;
    of_values.width = value_width;
    of_values.head_stride = sizes.head_stride / sizes.width * value_width;
    for (int64_t head = 0; head < sizes.heads; ++head) {
        float *key = keys + head * sizes.head_stride, *value = values + head * of_values.head_stride;
        std::memcpy(key + slot * sizes.width, k + head * sizes.width, sizes.width * sizeof *k);
        std::memcpy(value + slot * value_width, v + head * value_width, value_width * sizeof *v);
    }
    std::vector<float> scores(sizes.heads * sizes.group * sizes.rows);
    rows_of(sizes, keys, q, nullptr, nullptr, scores.data());
#pragma omp parallel for num_threads(int(sizes.threads)) if (sizes.threads > 1)
    for (int64_t head = 0; head < sizes.heads * sizes.group; ++head)
        softmax(&scores[head * sizes.rows], sizes.rows, scale);
    columns_of(of_values, values, scores.data(), y);
}

// Turns each pair (i, i + half) of the channels of each head by position * exp(pair_i * step).
extern "C" void turn_token(
    int64_t heads, int64_t half, double step, const int64_t* position, const int64_t* pair, const float* x, float* y
) {
    for (int64_t i = 0; i < half; ++i) {
        const float angle = float(*position) * std::exp(float(pair[i]) * float(step));
        const float cosine = std::cos(angle), sine = std::sin(angle);
        for (int64_t head = 0; head < heads; ++head) {
            const int64_t at = head * 2 * half + i;
            y[at] = x[at] * cosine - x[at + half] * sine;
            y[at + half] = x[at + half] * cosine + x[at] * sine;
        }
    }
}

// y = silu(gate) * up, where x has the gate's numbers before those of up.
extern "C" void gate_token(int64_t width, const float* x, float* y) {
    for (int64_t i = 0; i < width; ++i) y[i] = x[i] / (1 + std::exp(-x[i])) * x[width + i];
}

// y = x / sqrt(mean(x^2) + eps) * weight.
extern "C" void root_mean_square(int64_t width, float eps, const float* x, const float* weight, float* y) {
    Vector squares{};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (; i < width; ++i) total += x[i] * x[i];
    const float scale = 1 / std::sqrt(total / width + eps);
    for (i = 0; i < width; ++i) y[i] = x[i] * scale * weight[i];
}
