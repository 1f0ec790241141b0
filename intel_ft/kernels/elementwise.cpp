// RMSNorm, SwiGLU, dropout, rotation, cross-entropy and int8 quantization: one pass over memory
// each.
//
// Tensors are row-major and bfloat16 unless a name says otherwise; every kernel takes the number of
// OpenMP threads last. build.py compiles this file, ops.py calls it and checks the arguments.
//
// A worked example, for x [rows = 2, size = 4] and one weight w [4] of RMSNorm, eps = 0:
//
//   x = [[1, 1, 1, 1], [0, 0, 0, 2]]       mean of squares m = [1, 1], scale r = 1 / sqrt(m + eps)
//   forward   out[i][j] = w[j] * x[i][j] * r[i]                    = w * x here
//   backward  grad_x[i][j] = r[i] * w[j] * g[i][j]
//                          - r[i]^3 * x[i][j] * mean over j of (x[i][j] * w[j] * g[i][j])
//
// Saved for backward: x alone; r is recomputed from it. The other kernels:
//
//   SwiGLU     s = sigmoid(gate), out = gate * s * up
//              grad_gate = g * up * (s + gate * s * (1 - s)), grad_up = g * gate * s
//              Saved: gate and up; backward also returns out, which the down projection's LoRA
//              gradients need.
//   dropout    keeps element i where hash(i, seed) >= rate * 2^32. Saved: seed and rate; backward
//              drops the same elements by applying dropout to the gradient.
//   cross-entropy of logits z [rows, vocabulary] with target t[i]
//              loss = sum over i of (log(sum over j of exp(z[i][j])) - z[i][t[i]])
//              grad_z[i][j] = softmax(z[i])[j] - (j == t[i] ? 1 : 0), written over z.
//              Saved: nothing, the gradient is ready when forward returns.

#include <vector>

#include "rows.h"

namespace {

// Pseudo-random bits from a counter (lowbias32, Wellons 2018).
inline uint32_t hash32(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

}  // namespace

extern "C" {

// out = weight * x / rms(x), for each row.
void rms_norm(const bf16* x, const bf16* weight, float eps, bf16* out, int64_t rows, int64_t size,
              int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) norm_row(x + i * size, weight, eps, size, out + i * size);
}

// grad_x = the gradient of rms_norm at x, plus `residual` unless that is null.
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
      const bf16* add = residual + i * size;
#pragma omp simd
      for (int64_t j = 0; j < size; ++j)
        out[j] = round_to_bf16(to_float(add[j]) + scale * to_float(weight[j]) * to_float(g[j]) -
                               shrink * to_float(in[j]));
    } else {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j)
        out[j] =
            round_to_bf16(scale * to_float(weight[j]) * to_float(g[j]) - shrink * to_float(in[j]));
    }
  }
}

// out = silu(gate) * up.
void swiglu(const bf16* gate, const bf16* up, bf16* out, int64_t count, int threads) {
  constexpr int64_t PIECE = 1024;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; i += PIECE)
    swiglu_row(gate + i, up + i, std::min(PIECE, count - i), out + i);
}

// out = x / (1 - rate) where an element is kept and 0 elsewhere, plus `residual` unless that is
// null; `residual` may be out itself. The element's index and `seed` decide what is kept.
void dropout(const bf16* x, const bf16* residual, float rate, int64_t seed, bf16* out,
             int64_t count, int threads) {
  const uint32_t threshold = uint32_t(double(rate) * 4294967296.0);
  const float scale = 1.0f / (1.0f - rate);
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; ++i) {
    float kept =
        hash32(hash32(uint32_t(i)) + uint32_t(seed)) >= threshold ? to_float(x[i]) * scale : 0.0f;
    out[i] = round_to_bf16(residual ? to_float(residual[i]) + kept : kept);
  }
}

// The gradients of gate and up, and the output of swiglu once more; they may be gate, up and grad
// themselves.
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

// out[t][h] = x[t][h] rotated by the cos and sin [tokens, dim] of its token (see ops.rotate), or
// the gradient of that: with the halves a, b of a row, a cos - b sin | b cos + a sin.
void rotate(const bf16* x, const bf16* cos, const bf16* sin, int64_t tokens, int64_t heads,
            int64_t dim, int64_t backward, bf16* out, int threads) {
  const int64_t half = dim / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const bf16 *c = cos + t * dim, *s = sin + t * dim;
    for (int64_t i = t * heads * dim; i < (t + 1) * heads * dim; i += dim) {
      const bf16 *a = x + i, *b = a + half;
#pragma omp simd
      for (int64_t j = 0; j < half; ++j) {
        const float one = to_float(a[j]), two = to_float(b[j]);
        const float left = to_float(s[j]), right = to_float(s[j + half]);
        const float of_two = backward ? two * right : -two * left;
        const float of_one = backward ? -one * left : one * right;
        out[i + j] = round_to_bf16(one * to_float(c[j]) + of_two);
        out[i + half + j] = round_to_bf16(two * to_float(c[j + half]) + of_one);
      }
    }
  }
}

// The cross-entropy of each row of logits, which is overwritten with its gradient: softmax -
// one-hot. Both are 0 where the target is negative.
void cross_entropy(bf16* logits, const int64_t* targets, float* losses, int64_t rows, int64_t size,
                   int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    bf16* row = logits + i * size;
    if (targets[i] < 0) {
      losses[i] = 0;
      std::memset(row, 0, size * sizeof(bf16));
      continue;
    }
    float largest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < size; ++j) largest = std::max(largest, to_float(row[j]));
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < size; ++j) sum += fast_exp(to_float(row[j]) - largest);
    // Subtract `largest` first: in largest + log(sum) large logits would absorb the logarithm.
    const float target = to_float(row[targets[i]]) - largest, inverse = 1.0f / sum;
    losses[i] = std::log(sum) - target;
#pragma omp simd
    for (int64_t j = 0; j < size; ++j)
      row[j] = round_to_bf16(fast_exp(to_float(row[j]) - largest) * inverse);
    row[targets[i]] = round_to_bf16(fast_exp(target) * inverse - 1.0f);
  }
}

// Rounds each row to 8 bits with zero at 128 and one scale, so that x[i][j] * columns[j] is about
// (values[i][j] - 128) * scales[i]. `columns` is float32, or null for ones.
void quantize(const bf16* x, const float* columns, uint8_t* values, float* scales, int64_t rows,
              int64_t size, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scaled(size);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < size; ++j) scaled[j] = to_float(x[i * size + j]);
      if (columns)
        for (int64_t j = 0; j < size; ++j) scaled[j] *= columns[j];
      const float largest = largest_of(scaled.data(), nullptr, size);  // NaN if one is NaN
      scales[i] = largest / 127;
      float inverse = largest > 0 ? 127 / largest : 0;
#pragma omp simd
      for (int64_t j = 0; j < size; ++j)
        values[i * size + j] = uint8_t(int32_t(std::nearbyint(scaled[j] * inverse)) + 128);
    }
  }
}

// out = out * scales[row], plus `residual` unless that is null.
void scale_rows(bf16* out, const float* scales, const bf16* residual, int64_t rows, int64_t size,
                int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    bf16* row = out + i * size;
    const float scale = scales[i];
    if (residual) {
      const bf16* add = residual + i * size;
#pragma omp simd
      for (int64_t j = 0; j < size; ++j)
        row[j] = round_to_bf16(to_float(row[j]) * scale + to_float(add[j]));
    } else {
#pragma omp simd
      for (int64_t j = 0; j < size; ++j) row[j] = round_to_bf16(to_float(row[j]) * scale);
    }
  }
}

}  // extern "C"
