// What the training step does between its matrix products: RMSNorm, SwiGLU, dropout, segment attention
// with rotary positions, cross-entropy. All tensors are bfloat16 unless the name says otherwise; sums are
// taken in float32. Built and loaded by build.py, called through ops.py, which says the shapes.
//
// The small products inside attention are torch's own brgemm (AMX or AVX512-BF16 through oneDNN).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

namespace c10 {
struct BFloat16 {
  uint16_t bits;
};
}  // namespace c10

namespace at::native::cpublas {
void brgemm(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
            const c10::BFloat16* a, const c10::BFloat16* b, float* c, bool vnni);
void brgemm_release(bool vnni);
}  // namespace at::native::cpublas

using bf16 = c10::BFloat16;

namespace {

inline float to_float(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Round to nearest even. A NaN may round to infinity: the loss is checked for both.
inline bf16 round_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// exp(x) for x <= 88 to about 2 ulp: 2^n times a polynomial on [-ln2/2, ln2/2]. Written out because
// the library's does not vectorize.
inline float fast_exp(float x) {
  x = std::max(x, -87.0f);
  float n = std::nearbyint(x * 1.44269504f);
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  int32_t exponent = (int32_t(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, 4);
  return p * scale;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-std::min(std::max(x, -87.0f), 87.0f))); }

// 32 bits that look random, of a counter (lowbias32, Wellons 2018).
inline uint32_t hashed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

}  // namespace

extern "C" {

// out = weight * x / rms(x), row by row.
void rms_norm(const bf16* x, const bf16* weight, float eps, bf16* out, int64_t rows, int64_t size,
              int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const bf16* in = x + i * size;
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < size; ++j) squares += to_float(in[j]) * to_float(in[j]);
    float scale = 1.0f / std::sqrt(squares / size + eps);
#pragma omp simd
    for (int64_t j = 0; j < size; ++j)
      out[i * size + j] = round_to_bf16(to_float(weight[j]) * to_float(round_to_bf16(to_float(in[j]) * scale)));
  }
}

// grad_x = (residual +) the gradient of rms_norm at x for grad; residual may be null.
void rms_norm_backward(const bf16* x, const bf16* weight, const bf16* grad, const bf16* residual,
                       float eps, bf16* grad_x, int64_t rows, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const bf16 *in = x + i * size, *g = grad + i * size;
    float squares = 0, dot = 0;
#pragma omp simd reduction(+ : squares, dot)
    for (int64_t j = 0; j < size; ++j) {
      squares += to_float(in[j]) * to_float(in[j]);
      dot += to_float(in[j]) * to_float(g[j]) * to_float(weight[j]);
    }
    float scale = 1.0f / std::sqrt(squares / size + eps);
    float shrink = scale * scale * scale * dot / size;
    bf16* out = grad_x + i * size;
    if (residual) {
      const bf16* base = residual + i * size;
#pragma omp simd
      for (int64_t j = 0; j < size; ++j)
        out[j] = round_to_bf16(to_float(base[j]) + scale * to_float(weight[j]) * to_float(g[j]) - shrink * to_float(in[j]));
    } else {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j)
        out[j] = round_to_bf16(scale * to_float(weight[j]) * to_float(g[j]) - shrink * to_float(in[j]));
    }
  }
}

// out = silu(gate) * up.
void swiglu(const bf16* gate, const bf16* up, bf16* out, int64_t count, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; ++i) {
    float g = to_float(gate[i]);
    out[i] = round_to_bf16(g * sigmoid(g) * to_float(up[i]));
  }
}

// out = (onto +) x / (1 - rate) where an element is kept, which its place and `seed` decide; onto may
// be null, or out itself.
void dropout(const bf16* x, const bf16* onto, float rate, int64_t seed, bf16* out, int64_t count,
             int threads) {
  const uint32_t least = uint32_t(double(rate) * 4294967296.0);
  const float scale = 1.0f / (1.0f - rate);
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; ++i) {
    float kept = hashed(hashed(uint32_t(i)) + uint32_t(seed)) >= least ? to_float(x[i]) * scale : 0.0f;
    out[i] = round_to_bf16(onto ? to_float(onto[i]) + kept : kept);
  }
}

// The gradients of gate and up, and swiglu's output again.
void swiglu_backward(const bf16* gate, const bf16* up, const bf16* grad, bf16* grad_gate,
                     bf16* grad_up, bf16* out, int64_t count, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; ++i) {
    float g = to_float(gate[i]), u = to_float(up[i]), d = to_float(grad[i]);
    float s = sigmoid(g), silu = g * s;
    grad_gate[i] = round_to_bf16(d * u * (s + silu * (1.0f - s)));
    grad_up[i] = round_to_bf16(d * silu);
    out[i] = round_to_bf16(silu * u);
  }
}

// Summed cross-entropy of rows of logits, each overwritten with its gradient: softmax - one-hot, or
// zeros where the target is negative.
double cross_entropy(bf16* logits, const int64_t* targets, int64_t rows, int64_t size, int threads) {
  double total = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : total)
  for (int64_t i = 0; i < rows; ++i) {
    bf16* row = logits + i * size;
    if (targets[i] < 0) {
      std::memset(row, 0, size * sizeof(bf16));
      continue;
    }
    float top = -INFINITY, sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < size; ++j) top = std::max(top, to_float(row[j]));
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < size; ++j) sum += fast_exp(to_float(row[j]) - top);
    // By `top` first: top + log(sum) would lose the logarithm where logits are large.
    const float target = to_float(row[targets[i]]) - top, inverse = 1.0f / sum;
    total += std::log(sum) - target;
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) row[j] = round_to_bf16(fast_exp(to_float(row[j]) - top) * inverse);
    row[targets[i]] = round_to_bf16(fast_exp(target) * inverse - 1.0f);
  }
  return total;
}

// Each row in 8 bits, 128 standing for zero, and the scale that brings it back: x[i][j] * columns[j]
// is about (values[i][j] - 128) * scales[i]. `columns` float32, or null for ones.
void quantize(const bf16* x, const float* columns, uint8_t* values, float* scales, int64_t rows,
              int64_t size, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> wide(size);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; ++i) {
      float top = 0;
      for (int64_t j = 0; j < size; ++j) wide[j] = to_float(x[i * size + j]);
      if (columns)
        for (int64_t j = 0; j < size; ++j) wide[j] *= columns[j];
#pragma omp simd reduction(max : top)
      for (int64_t j = 0; j < size; ++j) top = std::max(top, std::fabs(wide[j]));
      scales[i] = top / 127;
      float inverse = top > 0 ? 127 / top : 0;
#pragma omp simd
      for (int64_t j = 0; j < size; ++j)
        values[i * size + j] = uint8_t(int32_t(std::nearbyint(wide[j] * inverse)) + 128);
    }
  }
}

// out = out * scales[row] (+ onto); `onto` may be null.
void scale_rows(bf16* out, const float* scales, const bf16* onto, int64_t rows, int64_t size,
                int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    bf16* to = out + i * size;
    const float scale = scales[i];
    if (onto) {
      const bf16* base = onto + i * size;
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) to[j] = round_to_bf16(to_float(to[j]) * scale + to_float(base[j]));
    } else {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) to[j] = round_to_bf16(to_float(to[j]) * scale);
    }
  }
}

}  // extern "C"

namespace {

constexpr int64_t BLOCK = 32;  // queries and keys of one small product

inline void multiply(int64_t m, int64_t n, int64_t k, int64_t lda, bool add, const bf16* a,
                     const bf16* b, float* c) {
  at::native::cpublas::brgemm(m, n, k, lda, n, n, add, a, b, c, true);
}


struct Task {
  int64_t start, length, head;
  int64_t blocks() const { return (length + BLOCK - 1) / BLOCK; }
};

// One task for each segment and head, the dearest first so that threads end together.
std::vector<Task> tasks_of(const int64_t* bounds, int64_t segments, int64_t heads) {
  std::vector<int64_t> order(segments);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return bounds[a + 1] - bounds[a] > bounds[b + 1] - bounds[b];
  });
  std::vector<Task> tasks;
  for (int64_t segment : order)
    for (int64_t head = 0; head < heads; ++head)
      tasks.push_back({bounds[segment], bounds[segment + 1] - bounds[segment], head});
  return tasks;
}

// One token's head, turned by its position: pairs (j, j + dim/2), as Llama has them. `sign` -1 turns
// back. cos and sin are null where nothing is to be turned.
inline void rotate(const float* in, const bf16* cos, const bf16* sin, float sign, int64_t dim,
                   float* out) {
  int64_t half = dim / 2;
#pragma omp simd
  for (int64_t j = 0; j < half; ++j) {
    float c = to_float(cos[j]), s = sign * to_float(sin[j]);
    out[j] = in[j] * c - in[j + half] * s;
    out[j + half] = in[j + half] * c + in[j] * s;
  }
}

// Up to BLOCK tokens of one head as a [BLOCK, dim] matrix, filled up with zeros.
void load(const bf16* source, int64_t stride, int64_t count, const bf16* cos, const bf16* sin,
          int64_t dim, bf16* out) {
  float wide[1024], turned[1024];
  for (int64_t i = 0; i < count; ++i) {
    const bf16* in = source + i * stride;
    if (!cos) {
      std::memcpy(out + i * dim, in, dim * sizeof(bf16));
      continue;
    }
#pragma omp simd
    for (int64_t j = 0; j < dim; ++j) wide[j] = to_float(in[j]);
    rotate(wide, cos + i * dim, sin + i * dim, 1.0f, dim, turned);
#pragma omp simd
    for (int64_t j = 0; j < dim; ++j) out[i * dim + j] = round_to_bf16(turned[j]);
  }
  std::memset(out + count * dim, 0, (BLOCK - count) * dim * sizeof(bf16));
}

void store(const float* source, int64_t stride, int64_t count, const bf16* cos, const bf16* sin,
           int64_t dim, bf16* out) {
  float turned[1024];
  for (int64_t i = 0; i < count; ++i) {
    const float* in = source + i * dim;
    if (cos) {
      rotate(in, cos + i * dim, sin + i * dim, -1.0f, dim, turned);
      in = turned;
    }
#pragma omp simd
    for (int64_t j = 0; j < dim; ++j) out[i * stride + j] = round_to_bf16(in[j]);
  }
}

// The layouts that brgemm takes its second factor in: pairs along the summed dimension together.
// From in [rows, columns]: `by_rows` sums over rows, out [rows/2][columns][2];
// `by_columns` sums over columns, out [columns/2][rows][2].
void by_rows(const bf16* in, int64_t rows, int64_t columns, bf16* out) {
  for (int64_t i = 0; i < rows; i += 2) {
    const bf16 *first = in + i * columns, *second = first + columns;
    uint32_t* pairs = reinterpret_cast<uint32_t*>(out + i * columns);
#pragma omp simd
    for (int64_t j = 0; j < columns; ++j)
      pairs[j] = uint32_t(first[j].bits) | uint32_t(second[j].bits) << 16;
  }
}

void by_columns(const bf16* in, int64_t rows, int64_t columns, bf16* out) {
  const uint32_t* pairs = reinterpret_cast<const uint32_t*>(in);
  uint32_t* turned = reinterpret_cast<uint32_t*>(out);
  int64_t half = columns / 2;
  for (int64_t tile = 0; tile < half; tile += 16)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = tile; j < std::min(tile + 16, half); ++j) turned[j * rows + i] = pairs[i * half + j];
}

void transpose(const bf16* in, bf16* out) {
  for (int64_t tile = 0; tile < BLOCK; tile += 16)
    for (int64_t i = 0; i < BLOCK; ++i)
      for (int64_t j = tile; j < tile + 16; ++j) out[j * BLOCK + i] = in[i * BLOCK + j];
}

template <typename T>
struct Buffer {  // grows, never shrinks: one for each thread, reused from task to task
  std::unique_ptr<T[]> data;
  int64_t size = 0;
  T* need(int64_t count) {
    if (count > size) data.reset(new T[size = count]);
    return data.get();
  }
};

}  // namespace

extern "C" {

// Causal attention inside each segment. q, out [tokens, heads, dim]; k, v [tokens, kv_heads, dim];
// cos, sin [tokens, dim]; bounds int64 [segments + 1]; logsumexp float32 [heads, tokens].
void attention(const bf16* q, const bf16* k, const bf16* v, const bf16* cos, const bf16* sin,
               const int64_t* bounds, int64_t segments, int64_t heads, int64_t kv_heads, int64_t dim,
               float scale, bf16* out, float* logsumexp, int threads) {
  const int64_t tokens = bounds[segments], stride_q = heads * dim, stride_kv = kv_heads * dim;
  const int64_t tile = BLOCK * dim, square = BLOCK * BLOCK;
  const std::vector<Task> tasks = tasks_of(bounds, segments, heads);
#pragma omp parallel num_threads(threads)
  {
    Buffer<bf16> packed, weights;
    Buffer<float> scores;
    std::vector<bf16> block(tile), queries(tile);
    std::vector<float> result(tile);
#pragma omp for schedule(dynamic, 1)
    for (size_t t = 0; t < tasks.size(); ++t) {
      const Task& task = tasks[t];
      const int64_t blocks = task.blocks(), kv = task.head / (heads / kv_heads);
      bf16* keys = packed.need(2 * blocks * tile);
      bf16* values = keys + blocks * tile;
      float* s = scores.need(blocks * square);
      bf16* p = weights.need(blocks * square);
      auto count = [&](int64_t b) { return std::min(BLOCK, task.length - b * BLOCK); };
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t at = task.start + b * BLOCK;
        load(k + at * stride_kv + kv * dim, stride_kv, count(b), cos + at * dim, sin + at * dim, dim, block.data());
        by_columns(block.data(), BLOCK, dim, keys + b * tile);
        load(v + at * stride_kv + kv * dim, stride_kv, count(b), nullptr, nullptr, dim, block.data());
        by_rows(block.data(), BLOCK, dim, values + b * tile);
      }
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t at = task.start + i * BLOCK;
        load(q + at * stride_q + task.head * dim, stride_q, count(i), cos + at * dim, sin + at * dim, dim, queries.data());
        for (int64_t b = 0; b <= i; ++b)
          multiply(BLOCK, BLOCK, dim, dim, false, queries.data(), keys + b * tile, s + b * square);
        for (int64_t row = 0; row < BLOCK; ++row) {
          float top = -INFINITY, sum = 0;
          for (int64_t b = 0; b <= i; ++b) {
            float* line = s + b * square + row * BLOCK;
            const int64_t seen = b < i ? BLOCK : row + 1;
#pragma omp simd reduction(max : top)
            for (int64_t j = 0; j < seen; ++j) top = std::max(top, line[j]);
          }
          for (int64_t b = 0; b <= i; ++b) {
            float* line = s + b * square + row * BLOCK;
            const int64_t seen = b < i ? BLOCK : row + 1;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < seen; ++j) sum += line[j] = fast_exp(scale * (line[j] - top));
          }
          const float inverse = 1.0f / sum;
          for (int64_t b = 0; b <= i; ++b) {
            const float* line = s + b * square + row * BLOCK;
            bf16* to = p + b * square + row * BLOCK;
            const int64_t seen = b < i ? BLOCK : row + 1;
#pragma omp simd
            for (int64_t j = 0; j < seen; ++j) to[j] = round_to_bf16(line[j] * inverse);
            std::memset(to + seen, 0, (BLOCK - seen) * sizeof(bf16));
          }
          if (row < count(i)) logsumexp[task.head * tokens + at + row] = scale * top + std::log(sum);
        }
        for (int64_t b = 0; b <= i; ++b)
          multiply(BLOCK, dim, BLOCK, BLOCK, b > 0, p + b * square, values + b * tile, result.data());
        store(result.data(), stride_q, count(i), nullptr, nullptr, dim, out + at * stride_q + task.head * dim);
      }
    }
    at::native::cpublas::brgemm_release(true);
  }
}

// The gradients of q, k and v. `grad` and `out` [tokens, heads, dim]. Where several query heads share
// a key head, each adds to `shared` float32 [2, heads, tokens, dim] first; else `shared` is null.
void attention_backward(const bf16* q, const bf16* k, const bf16* v, const bf16* cos, const bf16* sin,
                        const int64_t* bounds, int64_t segments, int64_t heads, int64_t kv_heads,
                        int64_t dim, float scale, const bf16* out, const float* logsumexp,
                        const bf16* grad, bf16* grad_q, bf16* grad_k, bf16* grad_v, float* shared,
                        int threads) {
  const int64_t tokens = bounds[segments], stride_q = heads * dim, stride_kv = kv_heads * dim;
  const int64_t tile = BLOCK * dim, square = BLOCK * BLOCK, group = heads / kv_heads;
  const std::vector<Task> tasks = tasks_of(bounds, segments, heads);
#pragma omp parallel num_threads(threads)
  {
    Buffer<bf16> packed;
    Buffer<float> sums;
    std::vector<bf16> rows(tile), queries(tile), queries_by_rows(tile), grads(tile), grads_by_rows(tile);
    std::vector<bf16> p(square), ds(square), turned(square);
    std::vector<float> s(square), dp(square), dq(tile);
    float delta[BLOCK], lse[BLOCK];
#pragma omp for schedule(dynamic, 1)
    for (size_t t = 0; t < tasks.size(); ++t) {
      const Task& task = tasks[t];
      const int64_t blocks = task.blocks(), kv = task.head / group;
      bf16* keys = packed.need(3 * blocks * tile);
      bf16 *keys_by_rows = keys + blocks * tile, *values = keys_by_rows + blocks * tile;
      float* dk = sums.need(2 * blocks * tile);
      float* dv = dk + blocks * tile;
      std::memset(dk, 0, 2 * blocks * tile * sizeof(float));
      auto count = [&](int64_t b) { return std::min(BLOCK, task.length - b * BLOCK); };
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t at = task.start + b * BLOCK;
        load(k + at * stride_kv + kv * dim, stride_kv, count(b), cos + at * dim, sin + at * dim, dim, rows.data());
        by_columns(rows.data(), BLOCK, dim, keys + b * tile);
        by_rows(rows.data(), BLOCK, dim, keys_by_rows + b * tile);
        load(v + at * stride_kv + kv * dim, stride_kv, count(b), nullptr, nullptr, dim, rows.data());
        by_columns(rows.data(), BLOCK, dim, values + b * tile);
      }
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t at = task.start + i * BLOCK, here = at * stride_q + task.head * dim;
        load(q + here, stride_q, count(i), cos + at * dim, sin + at * dim, dim, queries.data());
        by_rows(queries.data(), BLOCK, dim, queries_by_rows.data());
        load(grad + here, stride_q, count(i), nullptr, nullptr, dim, grads.data());
        by_rows(grads.data(), BLOCK, dim, grads_by_rows.data());
        for (int64_t row = 0; row < BLOCK; ++row) {
          float sum = 0;
          if (row < count(i)) {
            const bf16 *g = grads.data() + row * dim, *o = out + here + row * stride_q;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < dim; ++j) sum += to_float(g[j]) * to_float(o[j]);
          }
          delta[row] = sum;
          lse[row] = row < count(i) ? logsumexp[task.head * tokens + at + row] : 0.0f;
        }
        for (int64_t b = 0; b <= i; ++b) {
          multiply(BLOCK, BLOCK, dim, dim, false, queries.data(), keys + b * tile, s.data());
          multiply(BLOCK, BLOCK, dim, dim, false, grads.data(), values + b * tile, dp.data());
          for (int64_t row = 0; row < BLOCK; ++row) {
            const int64_t from = row * BLOCK, seen = row >= count(i) ? 0 : b < i ? BLOCK : row + 1;
#pragma omp simd
            for (int64_t j = 0; j < seen; ++j) {
              float weight = fast_exp(scale * s[from + j] - lse[row]);
              p[from + j] = round_to_bf16(weight);
              ds[from + j] = round_to_bf16(scale * weight * (dp[from + j] - delta[row]));
            }
            std::memset(&p[from + seen], 0, (BLOCK - seen) * sizeof(bf16));
            std::memset(&ds[from + seen], 0, (BLOCK - seen) * sizeof(bf16));
          }
          multiply(BLOCK, dim, BLOCK, BLOCK, b > 0, ds.data(), keys_by_rows + b * tile, dq.data());
          transpose(ds.data(), turned.data());
          multiply(BLOCK, dim, BLOCK, BLOCK, true, turned.data(), queries_by_rows.data(), dk + b * tile);
          transpose(p.data(), turned.data());
          multiply(BLOCK, dim, BLOCK, BLOCK, true, turned.data(), grads_by_rows.data(), dv + b * tile);
        }
        store(dq.data(), stride_q, count(i), cos + at * dim, sin + at * dim, dim, grad_q + here);
      }
      if (shared) {
        float* to = shared + (task.head * tokens + task.start) * dim;
        std::memcpy(to, dk, task.length * dim * sizeof(float));
        std::memcpy(to + heads * tokens * dim, dv, task.length * dim * sizeof(float));
        continue;
      }
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t at = task.start + b * BLOCK, here = at * stride_kv + kv * dim;
        store(dk + b * tile, stride_kv, count(b), cos + at * dim, sin + at * dim, dim, grad_k + here);
        store(dv + b * tile, stride_kv, count(b), nullptr, nullptr, dim, grad_v + here);
      }
    }
    at::native::cpublas::brgemm_release(true);
    if (shared) {
      std::vector<float> sum(2 * dim);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < tokens * kv_heads; ++i) {
        const int64_t token = i / kv_heads, kv = i % kv_heads;
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (int64_t head = kv * group; head < (kv + 1) * group; ++head) {
          const float* from = shared + (head * tokens + token) * dim;
          const float* other = from + heads * tokens * dim;
#pragma omp simd
          for (int64_t j = 0; j < dim; ++j) {
            sum[j] += from[j];
            sum[dim + j] += other[j];
          }
        }
        const int64_t here = token * stride_kv + kv * dim;
        store(sum.data(), stride_kv, 1, cos + token * dim, sin + token * dim, dim, grad_k + here);
        store(sum.data() + dim, stride_kv, 1, nullptr, nullptr, dim, grad_v + here);
      }
    }
  }
}

}  // extern "C"
