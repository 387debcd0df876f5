// The diagonal scan and its gradients. diagonal_scan.py beside this file states the recurrence and calls it.
//
// Neighbouring channels fill the lanes of a vector, so that no step needs a sum across lanes. A task is one sequence and
// some blocks of channels; it walks the tokens in spans and the blocks within a span, which keeps its states in the cache.
// States are (states, channels) here. No header of torch is needed: this compiles in seconds, anywhere with GCC or Clang.

#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace {

constexpr double LN2 = 0.693147180559945309417;

template <typename Number> struct Lanes;

template <> struct Lanes<float> {
    typedef float Vector __attribute__((vector_size(64)));
    typedef int32_t Whole __attribute__((vector_size(64)));
    static constexpr int size = 16, mantissa = 23, bias = 127, terms = 7;
};

template <> struct Lanes<double> {
    typedef double Vector __attribute__((vector_size(64)));
    typedef int64_t Whole __attribute__((vector_size(64)));
    static constexpr int size = 8, mantissa = 52, bias = 1023, terms = 13;
};

template <typename Number> using Vector = typename Lanes<Number>::Vector;

// 2^x: the whole part goes into the exponent, the rest, within half of one, through as many terms of the Taylor series as
// the precision has. Exact at 0; 0 from the smallest normal number down; not a number stays so.
template <typename Number> inline Vector<Number> exp2(Vector<Number> x) {
    using L = Lanes<Number>;
    constexpr Number lowest = -L::bias, highest = L::bias + 1;
    constexpr Number shift = Number(int64_t(3) << (L::mantissa - 1)) + L::bias;  // leaves whole part + bias in the low bits
    x = x < lowest ? Vector<Number>{} + lowest : x;
    x = x > highest ? Vector<Number>{} + highest : x;
    const Vector<Number> rounded = x + shift;
    const Vector<Number> rest = x - (rounded - shift);
    Vector<Number> sum{};
#pragma GCC unroll 16
    for (int term = L::terms; term > 0; --term) {
        double coefficient = 1;
        for (int k = 1; k <= term; ++k) coefficient *= LN2 / k;
        sum = (sum + Number(coefficient)) * rest;
    }
    typename L::Whole bits;
    std::memcpy(&bits, &rounded, sizeof bits);
    bits <<= L::mantissa;
    Vector<Number> power;
    std::memcpy(&power, &bits, sizeof power);
    return (sum + 1) * power;
}

// Two vectors side by side: half the reading of what all channels share, and two sums that need not wait for each other.
template <typename Number> struct Wide {
    Vector<Number> low, high;

    static constexpr int size = 2 * Lanes<Number>::size;

    Wide operator+(const Wide& other) const { return {low + other.low, high + other.high}; }
    Wide operator*(const Wide& other) const { return {low * other.low, high * other.high}; }
    Wide operator*(Number factor) const { return {low * factor, high * factor}; }
    Wide& operator+=(const Wide& other) { return *this = *this + other; }
    Vector<Number> sum() const { return low + high; }
};

template <typename Number> inline Wide<Number> exp2(const Wide<Number>& x) {
    return {exp2<Number>(x.low), exp2<Number>(x.high)};
}

template <typename Number> inline Wide<Number> load(const Number* from, int count) {
    Wide<Number> lanes{};
    std::memcpy(&lanes, from, count == Wide<Number>::size ? sizeof lanes : count * sizeof(Number));
    return lanes;
}

template <typename Number> inline void store(Number* to, const Wide<Number>& lanes, int count) {
    std::memcpy(to, &lanes, count == Wide<Number>::size ? sizeof lanes : count * sizeof(Number));
}

// Numbers too small for their full precision take a hundred times longer, and a decaying state would stay among them.
class FlushTinyNumbers {
#ifdef __SSE__
    unsigned before = _mm_getcsr();

public:
    FlushTinyNumbers() { _mm_setcsr(before | 0x8040); }
    ~FlushTinyNumbers() { _mm_setcsr(before); }
#endif
};

struct Sizes {
    // groups: of channels that share b and c; shares: parts of the channels, for threads that take one after the other
    int64_t sequences, channels, states, groups, tokens, span, shares, threads;
    int64_t x_row, b_row, c_row;  // how far a token lies from the next
};

// The next tokens of a block lie whole rows apart, where no processor looks for them by itself: asking saves half the time.
constexpr int64_t AHEAD = 8;

template <int written, typename Number> inline void fetch(const Number* from) {
    __builtin_prefetch(from, written);
    __builtin_prefetch(from + Lanes<Number>::size, written);
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls work(group, first channel, how many) for each block of a share; a block never has channels of two groups.
template <int width, typename Work> void each_block(const Sizes& sizes, int64_t share, Work work) {
    const int64_t in_group = sizes.channels / sizes.groups, blocks = (in_group + width - 1) / width;
    const int64_t all = blocks * sizes.groups, end = (share + 1) * all / sizes.shares;
    for (int64_t block = share * all / sizes.shares; block < end; ++block) {
        const int64_t group = block / blocks, within = block % blocks * width;
        work(group, group * in_group + within, int(least(width, in_group - within)));
    }
}

// b, c and their gradients are (tokens, groups, n); x, b and c may have gaps between tokens. The rates are (n, channels), or
// (channels,) when all states of a channel decay alike (one): then a token has a single exponential.
template <typename Number, bool one>
void forward(
    const Sizes& sizes, const int64_t* offsets, const int64_t* slots, const Number* x, const Number* step,
    const Number* rates, const Number* b, const Number* c, const Number* d, const Number* start, Number* y, Number* state,
    Number* kept
) {
    using V = Wide<Number>;
    constexpr int width = V::size;
    const int64_t channels = sizes.channels, n = sizes.states;
#pragma omp parallel for schedule(dynamic) num_threads(int(sizes.threads)) if (sizes.threads > 1)
    for (int64_t task = 0; task < sizes.sequences * sizes.shares; ++task) {
        const FlushTinyNumbers flush;
        const int64_t sequence = task / sizes.shares, share = task % sizes.shares, end = offsets[sequence + 1];
        const int64_t place = sequence * n * channels;
        each_block<width>(sizes, share, [&](int64_t, int64_t channel, int count) {
            for (int64_t j = 0; j < n; ++j) {
                const int64_t at = place + j * channels + channel;
                std::memcpy(state + at, start + at, count * sizeof(Number));
            }
        });
        std::vector<V> h(n), a(n);
        for (int64_t begin = offsets[sequence], slot = slots[sequence]; begin < end; begin += sizes.span, ++slot) {
            const int64_t stop = least(begin + sizes.span, end);
            each_block<width>(sizes, share, [&](int64_t group, int64_t channel, int count) {
                for (int64_t j = 0; j < n; ++j) {
                    if (!one || j == 0) a[j] = load(rates + j * channels + channel, count);
                    h[j] = load(state + place + j * channels + channel, count);
                    if (kept) store(kept + (slot * n + j) * channels + channel, h[j], count);
                }
                const V through = load(d + channel, count);
                for (int64_t t = begin; t < stop; ++t) {
                    fetch<0>(step + (t + AHEAD) * channels + channel);
                    fetch<0>(x + (t + AHEAD) * sizes.x_row + channel);
                    fetch<1>(y + (t + AHEAD) * channels + channel);
                    const V delta = load(step + t * channels + channel, count);
                    const V value = load(x + t * sizes.x_row + channel, count);
                    const V input = delta * value;
                    const Number *enters = b + t * sizes.b_row + group * n, *reads = c + t * sizes.c_row + group * n;
                    V decay = one ? exp2(delta * a[0]) : V{};
                    V sums[4] = {through * value};  // four, as one addition would wait for the other
                    const auto advance = [&](int64_t j, V& sum) {
                        if (!one) decay = exp2(delta * a[j]);
                        h[j] = decay * h[j] + input * enters[j];
                        sum += h[j] * reads[j];
                    };
                    int64_t j = 0;
                    for (; j + 4 <= n; j += 4) {
                        advance(j, sums[0]), advance(j + 1, sums[1]);
                        advance(j + 2, sums[2]), advance(j + 3, sums[3]);
                    }
                    for (; j < n; ++j) advance(j, sums[0]);
                    store(y + t * channels + channel, (sums[0] + sums[1]) + (sums[2] + sums[3]), count);
                }
                for (int64_t j = 0; j < n; ++j) store(state + place + j * channels + channel, h[j], count);
            });
        }
    }
}

// From the last token to the first. grad_state comes as that of the last state and leaves as that of the first; those of
// the rates and of d come as zeros, one for each sequence; those of b and c come as zeros, one for each share.
template <typename Number, bool one>
void backward(
    const Sizes& sizes, const int64_t* offsets, const int64_t* slots, const Number* x, const Number* step,
    const Number* rates, const Number* b, const Number* c, const Number* d, const Number* kept, const Number* grad_y,
    Number* grad_x, Number* grad_step, Number* grad_a, Number* grad_b, Number* grad_c, Number* grad_d, Number* grad_state
) {
    using V = Wide<Number>;
    constexpr int width = V::size;
    const int64_t channels = sizes.channels, n = sizes.states, rows = one ? 1 : n;
#pragma omp parallel for schedule(dynamic) num_threads(int(sizes.threads)) if (sizes.threads > 1)
    for (int64_t task = 0; task < sizes.sequences * sizes.shares; ++task) {
        const FlushTinyNumbers flush;
        const int64_t sequence = task / sizes.shares, share = task % sizes.shares;
        const int64_t place = sequence * n * channels, first = offsets[sequence], end = offsets[sequence + 1];
        std::vector<V> h(n), later(n), a(rows), of_a(rows);  // later: what a token's state is worth to later ones
        std::vector<V> decays(sizes.span * rows), carried(sizes.span * n);
        std::vector<Vector<Number>> of_b(sizes.span * n), of_c(sizes.span * n);
        for (int64_t span = (end - first + sizes.span - 1) / sizes.span - 1; span >= 0; --span) {
            const int64_t begin = first + span * sizes.span, stop = least(begin + sizes.span, end);
            int64_t summed = -1;  // the group that of_b and of_c belong to
            const auto sum_lanes = [&] {
                for (int64_t i = 0; summed >= 0 && i < (stop - begin) * n; ++i) {
                    const int64_t t = begin + i / n;
                    const int64_t to = ((share * sizes.tokens + t) * sizes.groups + summed) * n + i % n;
                    Number sum_b = 0, sum_c = 0;
                    for (int lane = 0; lane < width / 2; ++lane) sum_b += of_b[i][lane], sum_c += of_c[i][lane];
                    grad_b[to] += sum_b, grad_c[to] += sum_c;
                }
            };
            each_block<width>(sizes, share, [&](int64_t group, int64_t channel, int count) {
                if (group != summed) {
                    sum_lanes();
                    summed = group;
                    of_b.assign(of_b.size(), Vector<Number>{});
                    of_c.assign(of_c.size(), Vector<Number>{});
                }
                for (int64_t j = 0; j < n; ++j) {
                    h[j] = load(kept + ((slots[sequence] + span) * n + j) * channels + channel, count);
                    later[j] = load(grad_state + place + j * channels + channel, count);
                }
                for (int64_t j = 0; j < rows; ++j) {
                    a[j] = load(rates + j * channels + channel, count);
                    of_a[j] = load(grad_a + (sequence * rows + j) * channels + channel, count);
                }
                for (int64_t t = begin; t < stop; ++t) {
                    fetch<0>(step + (t + AHEAD) * channels + channel);
                    fetch<0>(x + (t + AHEAD) * sizes.x_row + channel);
                    const V delta = load(step + t * channels + channel, count);
                    const V input = delta * load(x + t * sizes.x_row + channel, count);
                    const Number* enters = b + t * sizes.b_row + group * n;
                    V *decay = &decays[(t - begin) * rows], *carry = &carried[(t - begin) * n];
                    for (int64_t j = 0; j < n; ++j) {
                        if (!one || j == 0) decay[j] = exp2(delta * a[j]);
                        carry[j] = decay[one ? 0 : j] * h[j];
                        h[j] = carry[j] + input * enters[j];
                    }
                }
                const V through = load(d + channel, count);
                V of_d = load(grad_d + sequence * channels + channel, count);
                for (int64_t t = stop - 1; t >= begin; --t) {
                    fetch<0>(grad_y + (t - AHEAD) * channels + channel);
                    fetch<1>(grad_x + (t - AHEAD) * channels + channel);
                    fetch<1>(grad_step + (t - AHEAD) * channels + channel);
                    const V delta = load(step + t * channels + channel, count);
                    const V value = load(x + t * sizes.x_row + channel, count);
                    const V input = delta * value, grad = load(grad_y + t * channels + channel, count);
                    const Number *enters = b + t * sizes.b_row + group * n, *reads = c + t * sizes.c_row + group * n;
                    const V *decay = &decays[(t - begin) * rows], *carry = &carried[(t - begin) * n];
                    Vector<Number> *to_b = &of_b[(t - begin) * n], *to_c = &of_c[(t - begin) * n];
                    V of_input{}, of_delta{}, of_logs{};  // logs: of the decays
                    for (int64_t j = 0; j < n; ++j) {
                        const V total = later[j] + grad * reads[j];
                        to_c[j] += (grad * (carry[j] + input * enters[j])).sum();
                        to_b[j] += (total * input).sum();
                        of_input += total * enters[j];
                        if (one) {
                            of_logs += total * carry[j];
                        } else {
                            const V of_log = total * carry[j];
                            of_delta += of_log * a[j];
                            of_a[j] += of_log * delta;
                        }
                        later[j] = total * decay[one ? 0 : j];
                    }
                    if (one) {
                        of_delta = of_logs * a[0];
                        of_a[0] += of_logs * delta;
                    }
                    store(grad_x + t * channels + channel, of_input * delta + grad * through, count);
                    store(grad_step + t * channels + channel, of_delta * Number(LN2) + of_input * value, count);
                    of_d += grad * value;
                }
                store(grad_d + sequence * channels + channel, of_d, count);
                for (int64_t j = 0; j < n; ++j) store(grad_state + place + j * channels + channel, later[j], count);
                for (int64_t j = 0; j < rows; ++j)
                    store(grad_a + (sequence * rows + j) * channels + channel, of_a[j], count);
            });
            sum_lanes();
        }
    }
}

// One token of one row, in place: the convolution of a Mamba layer, then its scan and its gate. Both walk the channels in
// single vectors; the last one may be shorter.
template <typename Number> inline Vector<Number> part(const Number* from, int count) {
    Vector<Number> lanes{};
    std::memcpy(&lanes, from, count * sizeof(Number));
    return lanes;
}

template <typename Number> inline Vector<Number> silu(Vector<Number> x) {
    return x / (1 + exp2<Number>(x * Number(-1 / LN2)));
}

// y = silu(bias + sum of weights (channels, kernel) times the last inputs, which are (kernel - 1, channels), and x).
template <typename Number>
void convolve_token(
    int64_t channels, int64_t kernel, const Number* x, const Number* weights, const Number* bias, Number* last, Number* y
) {
    constexpr int width = Lanes<Number>::size;
    for (int64_t channel = 0; channel < channels; channel += width) {
        const int count = int(least(width, channels - channel));
        Vector<Number> sum = bias ? part(bias + channel, count) : Vector<Number>{};
        for (int64_t j = 0; j < kernel; ++j) {
            Vector<Number> weight{};
            for (int lane = 0; lane < count; ++lane) weight[lane] = weights[(channel + lane) * kernel + j];
            const Number* from = j + 1 < kernel ? last + j * channels + channel : x + channel;
            const Vector<Number> input = part(from, count);
            sum += weight * input;
            if (j > 0) std::memcpy(last + (j - 1) * channels + channel, &input, count * sizeof(Number));
        }
        sum = silu<Number>(sum);
        std::memcpy(y + channel, &sum, count * sizeof(Number));
    }
}

// As forward for one token, with rates -exp(log_rates (channels, n)), and y times silu(gate).
template <typename Number>
void scan_token(
    int64_t channels, int64_t n, const Number* x, const Number* step, const Number* log_rates, const Number* b,
    const Number* c, const Number* d, const Number* gate, Number* state, Number* y
) {
    constexpr int width = Lanes<Number>::size;
    const FlushTinyNumbers flush;
    for (int64_t channel = 0; channel < channels; channel += width) {
        const int count = int(least(width, channels - channel));
        const Vector<Number> delta = part(step + channel, count), value = part(x + channel, count);
        const Vector<Number> input = delta * value, exponent = delta * Number(-1 / LN2);
        Vector<Number> sum = part(d + channel, count) * value;
        for (int64_t j = 0; j < n; ++j) {
            Vector<Number> log_rate{};
            for (int lane = 0; lane < count; ++lane) log_rate[lane] = log_rates[(channel + lane) * n + j];
            const Vector<Number> decay = exp2<Number>(exponent * exp2<Number>(log_rate * Number(1 / LN2)));
            const Vector<Number> h = decay * part(state + j * channels + channel, count) + input * b[j];
            std::memcpy(state + j * channels + channel, &h, count * sizeof(Number));
            sum += h * c[j];
        }
        sum *= silu<Number>(part(gate + channel, count));
        std::memcpy(y + channel, &sum, count * sizeof(Number));
    }
}

}  // namespace

#define EXPORTED(Number, name, one)                                                                                     \
    extern "C" void forward_##name(                                                                                     \
        Sizes* sizes, int64_t* offsets, int64_t* slots, Number* x, Number* step, Number* rates, Number* b, Number* c,   \
        Number* d, Number* start, Number* y, Number* state, Number* kept                                                \
    ) {                                                                                                                 \
        forward<Number, one>(*sizes, offsets, slots, x, step, rates, b, c, d, start, y, state, kept);                   \
    }                                                                                                                   \
    extern "C" void backward_##name(                                                                                    \
        Sizes* sizes, int64_t* offsets, int64_t* slots, Number* x, Number* step, Number* rates, Number* b, Number* c,   \
        Number* d, Number* kept, Number* grad_y, Number* grad_x, Number* grad_step, Number* grad_a, Number* grad_b,     \
        Number* grad_c, Number* grad_d, Number* grad_state                                                              \
    ) {                                                                                                                 \
        backward<Number, one>(                                                                                          \
            *sizes, offsets, slots, x, step, rates, b, c, d, kept, grad_y, grad_x, grad_step, grad_a, grad_b, grad_c,   \
            grad_d, grad_state                                                                                          \
        );                                                                                                              \
    }

EXPORTED(float, float32, false)
EXPORTED(double, float64, false)
EXPORTED(float, float32_one, true)
EXPORTED(double, float64_one, true)

extern "C" void convolve_token_float32(
    int64_t channels, int64_t kernel, float* x, float* weights, float* bias, float* last, float* y
) {
    convolve_token<float>(channels, kernel, x, weights, bias, last, y);
}

extern "C" void scan_token_float32(
    int64_t channels, int64_t n, float* x, float* step, float* log_rates, float* b, float* c, float* d, float* gate,
    float* state, float* y
) {
    scan_token<float>(channels, n, x, step, log_rates, b, c, d, gate, state, y);
}
