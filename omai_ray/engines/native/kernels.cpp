// What a decoder does between its products, each in one pass over memory; products of one row; and
// one token's way through a layer, which is made of them. On a CPU.
//
// Built for the machine at hand by build.py; called with plain pointers. Sums are float32 whatever
// the type of the tensors. A type `T` is float or Half, a bfloat16.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

namespace {

struct Half {
    uint16_t bits;
};

inline float load(float value) { return value; }

inline float load(Half value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline void store(float& place, float value) { place = value; }

inline void store(Half& place, float value) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    place.bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class T>
inline float rounded(float value) {
    T place;
    store(place, value);
    return load(place);
}

// Cephes' expf, for values of at most 0 or so; it becomes vector code.
inline float exponential(float x) {
    x = std::max(x, -87.0f);
    float n = std::nearbyint(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = (int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

constexpr int kWidest = 512;  // as kernels.py has it

// One query head over the keys and values of one key head; D is 0 where the width is not known
// beforehand. query: [width], scaled. scores: room for `length`.
template <class T, int D>
void attend_head(const float* query, const T* keys, const T* values, int64_t stride, int length,
                 int width, float* scores, T* out) {
    const int d_end = D ? D : width;
    for (int t = 0; t < length; t++) {
        const T* key = keys + t * stride;
        float sum = 0;
        for (int d = 0; d < d_end; d++) sum += query[d] * load(key[d]);
        scores[t] = sum;
    }
    float largest = scores[0], total = 0;
    for (int t = 1; t < length; t++) largest = std::max(largest, scores[t]);
    for (int t = 0; t < length; t++) {
        scores[t] = exponential(scores[t] - largest);
        total += scores[t];
    }
    float sums[D ? D : kWidest];
    std::fill(sums, sums + d_end, 0.0f);
    for (int t = 0; t < length; t++) {
        const T* value = values + t * stride;
        const float weight = scores[t];
        for (int d = 0; d < d_end; d++) sums[d] += weight * load(value[d]);
    }
    for (int d = 0; d < d_end; d++) store(out[d], sums[d] / total);
}

// One token each of some sequences: its key and value are stored, and it attends to all of them.
// strides: of a token and of a head in query, key and value.
template <class T>
void attend(const T* query, const T* key, const T* value, T* keys, T* values, T* out,
            const int64_t* starts, const int32_t* lengths, int sequences, int heads, int key_heads,
            int width, const int64_t (&strides)[6], float scale, int window, int threads) {
    const int64_t stride = int64_t(key_heads) * width;
    const int shared = heads / key_heads;
    const int chunk = sequences < 2 * threads ? 1 : key_heads;  // memory is read in order
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scores, scaled(width);
#pragma omp for collapse(2) schedule(dynamic, chunk)
        for (int s = 0; s < sequences; s++) {
            for (int k = 0; k < key_heads; k++) {
                const int length = lengths[s];
                const int from = window > 0 ? std::max(0, length - window) : 0;
                T* own_keys = keys + starts[s] * stride + k * width;
                T* own_values = values + starts[s] * stride + k * width;
                const int64_t last = (length - 1) * stride;
                const T* new_key = key + s * strides[2] + k * strides[3];
                const T* new_value = value + s * strides[4] + k * strides[5];
                std::copy(new_key, new_key + width, own_keys + last);
                std::copy(new_value, new_value + width, own_values + last);
                scores.resize(length - from);
                auto run = width == 64    ? attend_head<T, 64>
                           : width == 128 ? attend_head<T, 128>
                                          : attend_head<T, 0>;
                for (int head = k * shared; head < (k + 1) * shared; head++) {
                    const T* own = query + s * strides[0] + head * strides[1];
                    for (int d = 0; d < width; d++) scaled[d] = load(own[d]) * scale;
                    run(scaled.data(), own_keys + from * stride, own_values + from * stride, stride,
                        length - from, width, scores.data(),
                        out + (int64_t(s) * heads + head) * width);
                }
            }
        }
    }
}

// early: the normalised value is rounded to T before it is multiplied by the weight.
template <class T>
void rms_norm(const T* x, const T* weight, T* out, int64_t rows, int width, float epsilon,
              float offset, int early, int threads) {
#pragma omp parallel for num_threads(threads) if (rows > 8)
    for (int64_t row = 0; row < rows; row++) {
        const T* own = x + row * width;
        T* place = out + row * width;
        float sum = 0;
        for (int d = 0; d < width; d++) sum += load(own[d]) * load(own[d]);
        const float scale = 1.0f / std::sqrt(sum / width + epsilon);
        if (early)
            for (int d = 0; d < width; d++)
                store(place[d], load(weight[d]) * rounded<T>(load(own[d]) * scale));
        else
            for (int d = 0; d < width; d++)
                store(place[d], (load(weight[d]) + offset) * (load(own[d]) * scale));
    }
}

// gelu: the gate's function, approximated by a hyperbolic tangent as most do; else SiLU. Both are the
// gate times a sigmoid, GELU's of 2 sqrt(2 / pi) (x + 0.044715 x^3).
template <class T>
void gated_product(const T* gate, const T* up, T* out, int64_t rows, int width, int64_t stride,
                   int gelu, int threads) {
    const float linear = 1.5957691216f, cubic = 1.5957691216f * 0.044715f;
#pragma omp parallel for num_threads(threads) if (rows > 4)
    for (int64_t row = 0; row < rows; row++) {
        const T* own = gate + row * stride;
        const T* other = up + row * stride;
        T* place = out + row * width;
        for (int d = 0; d < width; d++) {
            const float x = load(own[d]);
            const float z = gelu ? x * (linear + cubic * x * x) : x;
            const float e = exponential(-std::fabs(z));
            const float sigmoid = (z >= 0 ? 1.0f : e) / (1.0f + e);
            store(place[d], rounded<T>(x * sigmoid) * load(other[d]));
        }
    }
}

// Rotary positions of some heads: x [tokens, heads, width] by strides, cos and sin [tokens, width]
// -> out [tokens, heads, width]. Halves are rotated, and each product is rounded to T.
template <class T>
void rotate(const T* x, const T* cos, const T* sin, T* out, int64_t tokens, int heads, int width,
            int64_t token_stride, int64_t head_stride, int threads) {
    const int half = width / 2;
#pragma omp parallel for num_threads(threads) if (tokens > 16)
    for (int64_t t = 0; t < tokens; t++) {
        const T* c = cos + t * width;
        const T* s = sin + t * width;
        for (int h = 0; h < heads; h++) {
            const T* own = x + t * token_stride + h * head_stride;
            T* place = out + (t * heads + h) * width;
            for (int d = 0; d < half; d++) {
                const float a = load(own[d]), b = load(own[d + half]);
                store(place[d], rounded<T>(a * load(c[d])) - rounded<T>(b * load(s[d])));
                store(place[d + half],
                      rounded<T>(b * load(c[d + half])) + rounded<T>(a * load(s[d + half])));
            }
        }
    }
}

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));

template <class V>
inline V read(const void* from) {
    V out;
    std::memcpy(&out, from, sizeof(V));
    return out;
}

// A linear layer with its weights in oneDNN's order: blocks of `block` outputs, and in a block all
// inputs, `pair` of them side by side for each output in turn. `padded` inputs have room.
template <class T>
struct Product {
    const T* weight;
    const T* bias;  // or null
    int32_t outputs, inputs, padded, block, pair;
};

// Outputs `first` to `first + V * kLanes` of a block, from one row x [padded].
template <int V>
void multiply_columns(const float* weight, const float* x, int inputs, int block, int, float* out) {
    Vector sums[V] = {};
    for (int i = 0; i < inputs; i++)
        for (int v = 0; v < V; v++)
            sums[v] += read<Vector>(weight + int64_t(i) * block + v * kLanes) * x[i];
    std::memcpy(out, sums, sizeof(sums));
}

template <int V>
void multiply_columns(const Half* weight, const float* x, int inputs, int block, int pair,
                      float* out) {
    Vector sums[V] = {};
    if (pair == 2) {
        const Half* own = weight;
        for (int i = 0; i < inputs; i += 2, own += 2 * int64_t(block))
            for (int v = 0; v < V; v++) {
                const Bits both = read<Bits>(own + 2 * v * kLanes);
                sums[v] += Vector(both << 16) * x[i];
                sums[v] += Vector(both & 0xffff0000u) * x[i + 1];
            }
    } else {
        for (int i = 0; i < inputs; i++)
            for (int v = 0; v < V; v++) {
                const Half* own = weight + int64_t(i) * block + v * kLanes;
                Vector values;
                for (int lane = 0; lane < kLanes; lane++) values[lane] = load(own[lane]);
                sums[v] += values * x[i];
            }
    }
    std::memcpy(out, sums, sizeof(sums));
}

// One row: x [inputs] -> out [outputs]. It takes as long as the weights take to be read.
template <class T>
void multiply_row(const Product<T>& product, const T* x, T* out, int threads) {
    constexpr int kUnit = 16;  // outputs that a block has a multiple of
    static thread_local std::vector<float> room;
    room.assign(product.padded + 1, 0.0f);  // a pair's second may lie beyond
    float* row = room.data();
    for (int i = 0; i < product.inputs; i++) row[i] = load(x[i]);
    const int half = product.block == 64 ? 32 : kUnit;
    const int parts = (product.outputs + half - 1) / half;
    const int together = std::max(1, std::min(threads, parts));
#pragma omp parallel num_threads(together)
    {
        const int team = omp_get_num_threads(), own = omp_get_thread_num();
        int first = int(int64_t(parts) * own / team) * half;
        const int end = std::min(int(int64_t(parts) * (own + 1) / team) * half, product.outputs);
        float made[64];
        while (first < end) {
            const int block = first / product.block, inside = first % product.block;
            const T* weight = product.weight +
                              int64_t(block) * product.block * product.padded +
                              inside * product.pair;
            int count = half;
            if (half == 32 && inside == 0 && first + 32 < end) {
                count = 64;
                multiply_columns<64 / kLanes>(weight, row, product.inputs, 64, product.pair, made);
            } else if (half == 32) {
                multiply_columns<32 / kLanes>(weight, row, product.inputs, 64, product.pair, made);
            } else {
                multiply_columns<kUnit / kLanes>(weight, row, product.inputs, product.block,
                                                 product.pair, made);
            }
            const int kept = std::min(count, product.outputs - first);
            for (int k = 0; k < kept; k++)
                store(out[first + k],
                      product.bias ? made[k] + load(product.bias[first + k]) : made[k]);
            first += count;
        }
    }
}

// Root mean square normalisation, as rms_norm takes it; weight is null where there is none.
template <class T>
struct Norm {
    const T* weight;
    float epsilon, offset;
    int32_t early;
};

// A decoder's layer: attention and a gated block, each on what its first norm makes of the sum so
// far, and added to it through its last norm. query_norm and key_norm are of heads.
template <class T>
struct Layer {
    Norm<T> attention_first, attention_last, block_first, block_last, query_norm, key_norm;
    Product<T> joint, projection, both, down;  // joint: query, key and value side by side
    int32_t heads, key_heads, width, window, gate_first, gelu;
    float scale;
};

template <class T>
void normalise(const Norm<T>& norm, T* x, int64_t rows, int width) {
    if (norm.weight)
        rms_norm(x, norm.weight, x, rows, width, norm.epsilon, norm.offset, norm.early, 1);
}

template <class T>
void add(const T* x, const T* y, T* out, int width) {
    for (int d = 0; d < width; d++) store(out[d], load(x[d]) + load(y[d]));
}

// One token of one sequence through a layer: x [N] -> out [N], cos and sin [width].
template <class T>
void decode(const Layer<T>& layer, const T* x, T* out, const T* cos, const T* sin, T* keys,
            T* values, int64_t start, int32_t length, int threads) {
    const int hidden = layer.joint.inputs, inner = layer.down.inputs, width = layer.width;
    const int query = layer.heads * width, key = layer.key_heads * width;
    static thread_local std::vector<T> room;
    room.resize(3 * hidden + 3 * (query + key) + 3 * inner);
    T* normed = room.data();
    T* made = normed + hidden;
    T* sum = made + hidden;
    T* joint = sum + hidden;
    T* rotated = joint + query + 2 * key;
    T* attended = rotated + query + key;
    T* both = attended + query;
    T* product = both + 2 * inner;

    std::copy(x, x + hidden, normed);
    normalise(layer.attention_first, normed, 1, hidden);
    multiply_row(layer.joint, normed, joint, threads);
    normalise(layer.query_norm, joint, layer.heads, width);
    normalise(layer.key_norm, joint + query, layer.key_heads, width);
    const int rotated_heads = layer.heads + layer.key_heads;
    rotate(joint, cos, sin, rotated, 1, rotated_heads, width, 0, width, 1);
    const int64_t strides[6] = {0, width, 0, width, 0, width};
    attend(rotated, rotated + query, joint + query + key, keys, values, attended, &start, &length,
           1, layer.heads, layer.key_heads, width, strides, layer.scale, layer.window, threads);
    multiply_row(layer.projection, attended, made, threads);
    normalise(layer.attention_last, made, 1, hidden);
    add(x, made, sum, hidden);

    std::copy(sum, sum + hidden, normed);
    normalise(layer.block_first, normed, 1, hidden);
    multiply_row(layer.both, normed, both, threads);
    const T* gate = layer.gate_first ? both : both + inner;
    const T* up = layer.gate_first ? both + inner : both;
    gated_product(gate, up, product, 1, inner, 2 * inner, layer.gelu, 1);
    multiply_row(layer.down, product, made, threads);
    normalise(layer.block_last, made, 1, hidden);
    add(sum, made, out, hidden);
}

}  // namespace

#define FOR_TYPE(T, NAME)                                                                          \
    extern "C" void attend_##NAME(const T* query, const T* key, const T* value, T* keys,          \
                                  T* values, T* out, const int64_t* starts,                       \
                                  const int32_t* lengths, int sequences, int heads,               \
                                  int key_heads, int width, int64_t query_token,                  \
                                  int64_t query_head, int64_t key_token, int64_t key_head,        \
                                  int64_t value_token, int64_t value_head, float scale,           \
                                  int window, int threads) {                                      \
        const int64_t strides[6] = {query_token, query_head,  key_token,                          \
                                    key_head,    value_token, value_head};                        \
        attend(query, key, value, keys, values, out, starts, lengths, sequences, heads,           \
               key_heads, width, strides, scale, window, threads);                                \
    }                                                                                              \
    extern "C" void rms_norm_##NAME(const T* x, const T* weight, T* out, int64_t rows, int width, \
                                    float epsilon, float offset, int early, int threads) {        \
        rms_norm(x, weight, out, rows, width, epsilon, offset, early, threads);                   \
    }                                                                                              \
    extern "C" void rotate_##NAME(const T* x, const T* cos, const T* sin, T* out, int64_t tokens, \
                                  int heads, int width, int64_t token_stride,                     \
                                  int64_t head_stride, int threads) {                             \
        rotate(x, cos, sin, out, tokens, heads, width, token_stride, head_stride, threads);       \
    }                                                                                              \
    extern "C" void gated_product_##NAME(const T* gate, const T* up, T* out, int64_t rows,        \
                                         int width, int64_t stride, int gelu, int threads) {       \
        gated_product(gate, up, out, rows, width, stride, gelu, threads);                         \
    }                                                                                              \
    extern "C" void multiply_row_##NAME(const Product<T>* product, const T* x, T* out,            \
                                        int threads) {                                            \
        multiply_row(*product, x, out, threads);                                                  \
    }                                                                                              \
    extern "C" void decode_##NAME(const Layer<T>* layer, const T* x, T* out, const T* cos,        \
                                  const T* sin, T* keys, T* values, int64_t start,                \
                                  int32_t length, int threads) {                                  \
        decode(*layer, x, out, cos, sin, keys, values, start, length, threads);                   \
    }

FOR_TYPE(float, float32)
FOR_TYPE(Half, bfloat16)
