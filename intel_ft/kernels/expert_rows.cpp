// The operations on rows between the GEMMs of a layer of experts, each one pass over memory.
//
// A row is a pair of token and expert; rows are sorted by expert, and some are padding. Tensors are
// bfloat16 unless a comment names another type; expert_rows.py calls these.
//
//   rows_gather        out[i] = x[tokens[i]], or zeros in padding rows
//   rows_sum           out[t] = sum over j of weights[t][j] * rows[places[t][j]], rounded once
//   rows_swiglu        out[i] = silu(gate[i]) * up[i], where hidden [rows, 2 size] = gate | up
//   rows_swiglu_backward   for d, the gradient of out before the router's weight: the gradient of
//                      hidden for weight[i] * d[i], out once more, and dot[i] = d[i] . out[i]
//   experts_lora       peft's float32 A and B as the products take them

#include <vector>

#include "rows.h"

extern "C" {

// x [count, size]; tokens int64 [rows], of which `count` and more stand for zeros.
void rows_gather(const bf16* x, const int64_t* tokens, int64_t count, int64_t rows, int64_t size,
                 bf16* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    if (tokens[i] < count)
      std::memcpy(out + i * size, x + tokens[i] * size, size * sizeof(bf16));
    else
      std::memset(out + i * size, 0, size * sizeof(bf16));
  }
}

// places int64 [count, each]; weights float32 [count, each], or null for ones.
void rows_sum(const bf16* rows, const int64_t* places, const float* weights, int64_t count,
              int64_t each, int64_t size, bf16* out, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> sums(size);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < count; ++t) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t j = t * each; j < (t + 1) * each; ++j) {
        const bf16* in = rows + places[j] * size;
        const float weight = weights ? weights[j] : 1.0f;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) sums[i] += weight * to_float(in[i]);
      }
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) out[t * size + i] = round_to_bf16(sums[i]);
    }
  }
}

void rows_swiglu(const bf16* hidden, int64_t rows, int64_t size, bf16* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const bf16 *gate = hidden + 2 * i * size, *up = gate + size;
    swiglu_row(gate, up, size, out + i * size);
  }
}

// d, out [rows, size]; weight, dot float32 [rows]; grad_hidden [rows, 2 size].
void rows_swiglu_backward(const bf16* hidden, const bf16* d, const float* weight, int64_t rows,
                          int64_t size, bf16* grad_hidden, bf16* out, float* dot, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const bf16 *gate = hidden + 2 * i * size, *up = gate + size, *grad = d + i * size;
    bf16 *grad_gate = grad_hidden + 2 * i * size, *grad_up = grad_gate + size;
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < size; ++j) {
      const float g = to_float(gate[j]), s = sigmoid(g), u = to_float(up[j]), silu = g * s;
      const float of_out = to_float(grad[j]), weighted = of_out * weight[i];
      grad_gate[j] = round_to_bf16(weighted * u * (s + silu * (1 - s)));
      grad_up[j] = round_to_bf16(weighted * silu);
      out[i * size + j] = round_to_bf16(silu * u);
      total += of_out * silu * u;
    }
    dot[i] = total;
  }
}

// a float32 [experts * rank, inner] becomes out_a [experts, padded, inner], and scale * b, float32
// [outputs, rank * experts], becomes out_b [experts, outputs, padded], with zeros beyond the rank.
void experts_lora(const float* a, const float* b, float scale, int64_t experts, int64_t rank,
                  int64_t padded, int64_t inner, int64_t outputs, bf16* out_a, bf16* out_b,
                  int threads) {
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < experts * padded; ++i) {
      bf16* to = out_a + i * inner;
      const int64_t e = i / padded, r = i % padded;
      if (r < rank) {
        const float* from = a + (e * rank + r) * inner;
#pragma omp simd
        for (int64_t j = 0; j < inner; ++j) to[j] = round_to_bf16(from[j]);
      } else {
        std::memset(to, 0, inner * sizeof(bf16));
      }
    }
#pragma omp for schedule(static)
    for (int64_t o = 0; o < outputs; ++o) {
      const float* from = b + o * rank * experts;
      for (int64_t e = 0; e < experts; ++e) {
        bf16* to = out_b + (e * outputs + o) * padded;
        for (int64_t r = 0; r < rank; ++r) to[r] = round_to_bf16(scale * from[r * experts + e]);
        std::memset(to + rank, 0, (padded - rank) * sizeof(bf16));
      }
    }
  }
}

}  // extern "C"
