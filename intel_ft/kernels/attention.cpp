// Causal attention of each segment of a packed row to itself and to the segments that it follows,
// with rotary positions, and its gradient.
//
// A worked example: tokens = 5 in two segments of 3 and 2, heads = 4 query heads that share
// kv_heads = 2 key and value heads, dim = 8.
//
//   bounds [0, 3, 5]     q, out [5, 4, 8]     k, v [5, 2, 8]     cos, sin [5, 8]
//   logsumexp float32 [4, 5]
//
// There are 2 * 4 tasks, one for each tree of segments and query head; here, where no segment
// follows another, each one is a tree. Head h reads key head h / 2. A task splits each segment into
// blocks of 32 tokens (one here, padded with zeros) and computes, for query block i and key blocks
// b <= i, with Q and K rotated by their positions,
//
//   S = Q K^T                             [32, 32] for each b; in b = i, row r sees columns <= r
//   L = logsumexp of scale * S            over all blocks, for each row
//   P = exp(scale * S - L)
//   O = sum over b of P V
//
// Where a segment follows others (parents [-1, 0]: the second follows the first), the blocks of
// those come before b = 0, and each row sees all of their tokens. Blocks are aligned to positions
// (forest.h), so that a segment has no more of them than it would have alone.
//
// Where cos is null, Q and K come rotated, and nothing is rotated back.
//
// Saved for backward: q, k and v before rotation, out and logsumexp; not P. Backward recomputes S
// and P and then computes (FlashAttention-2, Dao 2023), for output gradient dO,
//
//   D = row sums of dO * O
//   dV += P^T dO          dP = dO V^T          dS = scale * P * (dP - D)
//   dQ += dS K            dK += dS^T Q
//
// and rotates dQ and dK back. block_matmul.h has the matmuls of blocks.

#include <memory>
#include <vector>

#include "bf16.h"
#include "block_matmul.h"
#include "forest.h"

namespace {

struct Task {
  const Tree* tree;
  int64_t head;
};

// One task for each tree and head.
std::vector<Task> make_tasks(const std::vector<Tree>& trees, int64_t heads) {
  std::vector<Task> tasks;
  for (const Tree& tree : trees)
    for (int64_t head = 0; head < heads; ++head) tasks.push_back({&tree, head});
  return tasks;
}

// Rotates one token's head by its position, in pairs (j, j + dim/2) as Llama has them; `sign` -1
// rotates back.
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

// The factors of a token on; null stands for no rotation.
inline const bf16* factors_at(const bf16* factors, int64_t offset) {
  return factors ? factors + offset : nullptr;
}

// Reads `count` tokens of one head into a [count, dim] matrix; rotates them unless cos is null.
void load_rows(const bf16* source, int64_t stride, int64_t count, const bf16* cos, const bf16* sin,
               int64_t dim, bf16* out) {
  float unrotated[1024], rotated[1024];
  for (int64_t i = 0; i < count; ++i) {
    const bf16* in = source + i * stride;
    if (!cos) {
      std::memcpy(out + i * dim, in, dim * sizeof(bf16));
      continue;
    }
#pragma omp simd
    for (int64_t j = 0; j < dim; ++j) unrotated[j] = to_float(in[j]);
    rotate(unrotated, cos + i * dim, sin + i * dim, 1.0f, dim, rotated);
#pragma omp simd
    for (int64_t j = 0; j < dim; ++j) out[i * dim + j] = round_to_bf16(rotated[j]);
  }
}

// Reads tokens from `token` on into rows first to last - 1 of a [BLOCK, dim] matrix, zeros into the
// other rows. source: the head's first token.
void load_block(const bf16* source, int64_t stride, int64_t token, int64_t first, int64_t last,
                const bf16* cos, const bf16* sin, int64_t dim, bf16* out) {
  std::memset(out, 0, first * dim * sizeof(bf16));
  load_rows(source + token * stride, stride, last - first, factors_at(cos, token * dim),
            factors_at(sin, token * dim), dim, out + first * dim);
  std::memset(out + last * dim, 0, (BLOCK - last) * dim * sizeof(bf16));
}

// Reads the queries of a segment's block i, or another tensor of their shape.
void load_queries(const bf16* source, int64_t stride, const Segment& segment, int64_t i,
                  const bf16* cos, const bf16* sin, int64_t dim, bf16* out) {
  load_block(source, stride, segment.query_token(i), segment.first_query(i), segment.last_query(i),
             cos, sin, dim, out);
}

// Reads the keys or values of a segment's block b, the copied ones included.
void load_keys(const bf16* source, int64_t stride, const Segment& segment, int64_t b,
               const bf16* cos, const bf16* sin, int64_t dim, bf16* out) {
  const int64_t first = segment.first_key(b);
  load_block(source, stride, segment.key_token(b, first), first, segment.last_key(b), cos, sin, dim,
             out);
  for (int64_t row = 0; row < first; ++row) {
    const int64_t token = segment.copied[row];
    load_rows(source + token * stride, stride, 1, factors_at(cos, token * dim),
              factors_at(sin, token * dim), dim, out + row * dim);
  }
}

// Adds the rows of copied tokens to those that they are copies of, which may be copies themselves.
void add_copied(const Tree& tree, int64_t dim, float* gradients) {
  for (auto segment = tree.segments.rbegin(); segment != tree.segments.rend(); ++segment) {
    if (segment->copied.empty()) continue;
    const Segment& above = tree.segments[segment->parent];
    const float* from = gradients + segment->block * BLOCK * dim;
    float* to = gradients + (above.block + above.blocks() - 1) * BLOCK * dim;
#pragma omp simd
    for (int64_t i = 0; i < segment->offset() * dim; ++i) to[i] += from[i];
  }
}

// Writes `count` tokens of one head, rotated back unless cos is null.
void store_block(const float* source, int64_t stride, int64_t count, const bf16* cos,
                 const bf16* sin, int64_t dim, bf16* out) {
  float rotated[1024];
  for (int64_t i = 0; i < count; ++i) {
    const float* in = source + i * dim;
    if (cos) {
      rotate(in, cos + i * dim, sin + i * dim, -1.0f, dim, rotated);
      in = rotated;
    }
#pragma omp simd
    for (int64_t j = 0; j < dim; ++j) out[i * stride + j] = round_to_bf16(in[j]);
  }
}

// As pack_b, for B = in^T [columns, rows].
void pack_b_transposed(const bf16* in, int64_t rows, int64_t columns, bf16* out) {
  const uint32_t* pairs = reinterpret_cast<const uint32_t*>(in);
  uint32_t* transposed = reinterpret_cast<uint32_t*>(out);
  int64_t half = columns / 2;
  for (int64_t tile = 0; tile < half; tile += 16)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = tile; j < std::min(tile + 16, half); ++j)
        transposed[j * rows + i] = pairs[i * half + j];
}

void transpose(const bf16* in, bf16* out) {
  for (int64_t tile = 0; tile < BLOCK; tile += 16)
    for (int64_t i = 0; i < BLOCK; ++i)
      for (int64_t j = tile; j < tile + 16; ++j) out[j * BLOCK + i] = in[i * BLOCK + j];
}

template <typename T>
struct Buffer {  // grows and never shrinks: one for each thread, reused from task to task
  std::unique_ptr<T[]> data;
  int64_t size = 0;
  T* reserve(int64_t count) {
    if (count > size) data.reset(new T[size = count]);
    return data.get();
  }
};

}  // namespace

extern "C" {

// q, out [tokens, heads, dim]; k, v [tokens, kv_heads, dim]; cos, sin [tokens, dim]; bounds int64
// [segments + 1]; parents int64 [segments], the earlier segment of its tree that each one follows,
// -1 for none, or null if none does; logsumexp float32 [heads, tokens]; tiles: whether AMX tiles
// multiply, for which dim must be a multiple of 32.
void attention(const bf16* q, const bf16* k, const bf16* v, const bf16* cos, const bf16* sin,
               const int64_t* bounds, const int64_t* parents, int64_t segments, int64_t heads,
               int64_t kv_heads, int64_t dim, float scale, bf16* out, float* logsumexp,
               int64_t tiles, int threads) {
  const int64_t tokens = bounds[segments], stride_q = heads * dim, stride_kv = kv_heads * dim;
  const int64_t tile = BLOCK * dim, square = BLOCK * BLOCK;
  const std::vector<Tree> trees = make_trees(bounds, parents, segments);
  const std::vector<Task> tasks = make_tasks(trees, heads);
#pragma omp parallel num_threads(threads)
  {
    const Matmul matmul(tiles);
    Buffer<bf16> packed, weights;
    Buffer<float> scores;
    std::vector<bf16> block(tile), queries(tile);
    std::vector<float> result(tile);
#pragma omp for schedule(dynamic, 1)
    for (size_t t = 0; t < tasks.size(); ++t) {
      const Tree& tree = *tasks[t].tree;
      const int64_t head = tasks[t].head, kv = head / (heads / kv_heads);
      bf16* keys = packed.reserve(2 * tree.blocks * tile);
      bf16* values = keys + tree.blocks * tile;
      float* s = scores.reserve(tree.most_keys * square);
      bf16* p = weights.reserve(tree.most_keys * square);
      for (const Segment& segment : tree.segments)
        for (int64_t b = 0; b < segment.blocks(); ++b) {
          const int64_t place = (segment.block + b) * tile;
          load_keys(k + kv * dim, stride_kv, segment, b, cos, sin, dim, block.data());
          pack_b_transposed(block.data(), BLOCK, dim, keys + place);
          load_keys(v + kv * dim, stride_kv, segment, b, nullptr, nullptr, dim, block.data());
          pack_b(block.data(), dim, BLOCK, dim, values + place);
        }
      for (const Segment& segment : tree.segments)
        for (int64_t i = 0; i < segment.query_blocks(); ++i) {
          const int64_t first_row = segment.first_query(i), last_row = segment.last_query(i);
          const int64_t first = segment.query_token(i), blocks = segment.key_blocks(i);
          load_queries(q + head * dim, stride_q, segment, i, cos, sin, dim, queries.data());
          for (int64_t b = 0; b < blocks; ++b)
            matmul(BLOCK, dim, false, queries.data(), keys + segment.key_block(b) * tile,
                   s + b * square);
          for (int64_t row = first_row; row < last_row; ++row) {
            float largest = -INFINITY, sum = 0;
            for (int64_t b = 0; b < blocks; ++b) {
              float* line = s + b * square + row * BLOCK;
              const int64_t visible = segment.visible(b, i, row);
#pragma omp simd reduction(max : largest)
              for (int64_t j = 0; j < visible; ++j) largest = std::max(largest, line[j]);
            }
            for (int64_t b = 0; b < blocks; ++b) {
              float* line = s + b * square + row * BLOCK;
              const int64_t visible = segment.visible(b, i, row);
#pragma omp simd reduction(+ : sum)
              for (int64_t j = 0; j < visible; ++j)
                sum += line[j] = fast_exp(scale * (line[j] - largest));
            }
            const float inverse = 1.0f / sum;
            for (int64_t b = 0; b < blocks; ++b) {
              const float* line = s + b * square + row * BLOCK;
              bf16* target = p + b * square + row * BLOCK;
              const int64_t visible = segment.visible(b, i, row);
#pragma omp simd
              for (int64_t j = 0; j < visible; ++j) target[j] = round_to_bf16(line[j] * inverse);
              std::memset(target + visible, 0, (BLOCK - visible) * sizeof(bf16));
            }
            logsumexp[head * tokens + first + row - first_row] = scale * largest + std::log(sum);
          }
          for (int64_t b = 0; b < blocks; ++b)
            matmul(dim, BLOCK, b > 0, p + b * square, values + segment.key_block(b) * tile,
                   result.data());
          store_block(result.data() + first_row * dim, stride_q, last_row - first_row, nullptr,
                      nullptr, dim, out + first * stride_q + head * dim);
        }
    }
  }
}

// The gradients of q, k and v; grad and out [tokens, heads, dim]. Where several query heads share a
// key head, each writes its part of the gradients of k and v to `shared`, float32
// [2, heads, tokens, dim], and the parts are summed at the end; otherwise `shared` is null.
void attention_backward(const bf16* q, const bf16* k, const bf16* v, const bf16* cos,
                        const bf16* sin, const int64_t* bounds, const int64_t* parents,
                        int64_t segments, int64_t heads, int64_t kv_heads, int64_t dim, float scale,
                        const bf16* out, const float* logsumexp, const bf16* grad, bf16* grad_q,
                        bf16* grad_k, bf16* grad_v, float* shared, int64_t tiles, int threads) {
  const int64_t tokens = bounds[segments], stride_q = heads * dim, stride_kv = kv_heads * dim;
  const int64_t tile = BLOCK * dim, square = BLOCK * BLOCK, group = heads / kv_heads;
  const std::vector<Tree> trees = make_trees(bounds, parents, segments);
  const std::vector<Task> tasks = make_tasks(trees, heads);
#pragma omp parallel num_threads(threads)
  {
    const Matmul matmul(tiles);
    Buffer<bf16> packed;
    Buffer<float> sums;
    std::vector<bf16> rows(tile), queries(tile), packed_queries(tile), grads(tile),
        packed_grads(tile);
    std::vector<bf16> p(square), ds(square), transposed(square);
    std::vector<float> s(square), dp(square), dq(tile);
    float delta[BLOCK], row_logsumexp[BLOCK];
#pragma omp for schedule(dynamic, 1)
    for (size_t t = 0; t < tasks.size(); ++t) {
      const Tree& tree = *tasks[t].tree;
      const int64_t head = tasks[t].head, kv = head / group;
      bf16* keys = packed.reserve(3 * tree.blocks * tile);
      bf16 *packed_keys = keys + tree.blocks * tile, *values = packed_keys + tree.blocks * tile;
      float* dk = sums.reserve(2 * tree.blocks * tile);
      float* dv = dk + tree.blocks * tile;
      std::memset(dk, 0, 2 * tree.blocks * tile * sizeof(float));
      for (const Segment& segment : tree.segments)
        for (int64_t b = 0; b < segment.blocks(); ++b) {
          const int64_t place = (segment.block + b) * tile;
          load_keys(k + kv * dim, stride_kv, segment, b, cos, sin, dim, rows.data());
          pack_b_transposed(rows.data(), BLOCK, dim, keys + place);
          pack_b(rows.data(), dim, BLOCK, dim, packed_keys + place);
          load_keys(v + kv * dim, stride_kv, segment, b, nullptr, nullptr, dim, rows.data());
          pack_b_transposed(rows.data(), BLOCK, dim, values + place);
        }
      for (const Segment& segment : tree.segments)
        for (int64_t i = 0; i < segment.query_blocks(); ++i) {
          const int64_t first_row = segment.first_query(i), last_row = segment.last_query(i);
          const int64_t first = segment.query_token(i), blocks = segment.key_blocks(i);
          const int64_t offset = first * stride_q + head * dim;
          load_queries(q + head * dim, stride_q, segment, i, cos, sin, dim, queries.data());
          pack_b(queries.data(), dim, BLOCK, dim, packed_queries.data());
          load_queries(grad + head * dim, stride_q, segment, i, nullptr, nullptr, dim,
                       grads.data());
          pack_b(grads.data(), dim, BLOCK, dim, packed_grads.data());
          for (int64_t row = first_row; row < last_row; ++row) {
            float sum = 0;
            const bf16* g = grads.data() + row * dim;
            const bf16* o = out + offset + (row - first_row) * stride_q;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < dim; ++j) sum += to_float(g[j]) * to_float(o[j]);
            delta[row] = sum;
            row_logsumexp[row] = logsumexp[head * tokens + first + row - first_row];
          }
          for (int64_t b = 0; b < blocks; ++b) {
            const int64_t place = segment.key_block(b) * tile;
            matmul(BLOCK, dim, false, queries.data(), keys + place, s.data());
            matmul(BLOCK, dim, false, grads.data(), values + place, dp.data());
            for (int64_t row = 0; row < BLOCK; ++row) {
              const int64_t from = row * BLOCK;
              const bool own = first_row <= row && row < last_row;
              const int64_t visible = own ? segment.visible(b, i, row) : 0;
#pragma omp simd
              for (int64_t j = 0; j < visible; ++j) {
                float weight = fast_exp(scale * s[from + j] - row_logsumexp[row]);
                p[from + j] = round_to_bf16(weight);
                ds[from + j] = round_to_bf16(scale * weight * (dp[from + j] - delta[row]));
              }
              std::memset(&p[from + visible], 0, (BLOCK - visible) * sizeof(bf16));
              std::memset(&ds[from + visible], 0, (BLOCK - visible) * sizeof(bf16));
            }
            matmul(dim, BLOCK, b > 0, ds.data(), packed_keys + place, dq.data());
            transpose(ds.data(), transposed.data());
            matmul(dim, BLOCK, true, transposed.data(), packed_queries.data(), dk + place);
            transpose(p.data(), transposed.data());
            matmul(dim, BLOCK, true, transposed.data(), packed_grads.data(), dv + place);
          }
          store_block(dq.data() + first_row * dim, stride_q, last_row - first_row,
                      factors_at(cos, first * dim), factors_at(sin, first * dim), dim,
                      grad_q + offset);
        }
      add_copied(tree, dim, dk);
      add_copied(tree, dim, dv);
      for (const Segment& segment : tree.segments) {
        const int64_t place = segment.block * tile;
        if (shared) {
          const int64_t own = place + segment.offset() * dim;
          float* target = shared + (head * tokens + segment.start) * dim;
          std::memcpy(target, dk + own, segment.length * dim * sizeof(float));
          std::memcpy(target + heads * tokens * dim, dv + own,
                      segment.length * dim * sizeof(float));
          continue;
        }
        for (int64_t b = 0; b < segment.blocks(); ++b) {
          const int64_t first_row = segment.first_key(b), count = segment.last_key(b) - first_row;
          const int64_t first = segment.key_token(b, first_row);
          const int64_t offset = first * stride_kv + kv * dim;
          const int64_t own = place + b * tile + first_row * dim;
          store_block(dk + own, stride_kv, count, factors_at(cos, first * dim),
                      factors_at(sin, first * dim), dim, grad_k + offset);
          store_block(dv + own, stride_kv, count, nullptr, nullptr, dim, grad_v + offset);
        }
      }
    }
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
        const int64_t offset = token * stride_kv + kv * dim;
        store_block(sum.data(), stride_kv, 1, factors_at(cos, token * dim),
                    factors_at(sin, token * dim), dim, grad_k + offset);
        store_block(sum.data() + dim, stride_kv, 1, nullptr, nullptr, dim, grad_v + offset);
      }
    }
  }
}

}  // extern "C"
