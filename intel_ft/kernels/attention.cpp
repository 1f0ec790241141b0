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
// and rotates dQ and dK back. It computes S^T, dP^T, P^T and dS^T, of which only dS^T has to be
// transposed. block_matmul.h has the matmuls of blocks.

#include <memory>
#include <vector>

#include "attention_blocks.h"
#include "block_matmul.h"

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

// P of one row of a block of queries, [BLOCK, BLOCK] for each of the blocks of keys that it sees,
// from its scores, which it overwrites; returns the logsumexp of scale * scores.
float softmax_row(const Segment& segment, int64_t i, int64_t row, float scale, float* scores,
                  bf16* weights) {
  const int64_t blocks = segment.key_blocks(i), square = BLOCK * BLOCK;
  // Whole blocks of keys, but for the last ones.
  const auto mask_of = [&](int64_t b, int64_t j) { return mask16(segment.visible(b, i, row) - j); };
  const __m512 least = _mm512_set1_ps(-INFINITY);
  __m512 most = least, sums = _mm512_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t j = 0; j < BLOCK; j += 16) {
      const float* from = scores + b * square + row * BLOCK + j;
      most = _mm512_max_ps(most, _mm512_mask_loadu_ps(least, mask_of(b, j), from));
    }
  const float largest = _mm512_reduce_max_ps(most);
  most = _mm512_set1_ps(largest);
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t j = 0; j < BLOCK; j += 16) {
      float* at = scores + b * square + row * BLOCK + j;
      const __m512 below = _mm512_sub_ps(_mm512_loadu_ps(at), most);
      const __m512 seen =
          _mm512_maskz_mov_ps(mask_of(b, j), fast_exp(_mm512_mul_ps(below, factor)));
      sums = _mm512_add_ps(sums, seen);
      _mm512_storeu_ps(at, seen);
    }
  const float sum = _mm512_reduce_add_ps(sums);
  const __m512 inverse = _mm512_set1_ps(1.0f / sum);
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t j = 0; j < BLOCK; j += 16) {
      const int64_t at = b * square + row * BLOCK + j;
      store_rounded(weights + at, 0xffff, _mm512_mul_ps(_mm512_loadu_ps(scores + at), inverse));
    }
  return scale * largest + std::log(sum);
}

float dot(const bf16* x, const bf16* y, int64_t count) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < count; j += 16) {
    const __mmask16 mask = mask16(count - j);
    sum = _mm512_fmadd_ps(load_float(x + j, mask), load_float(y + j, mask), sum);
  }
  return _mm512_reduce_add_ps(sum);
}

// D and L of a block of queries.
struct QueryRows {
  alignas(64) float delta[BLOCK] = {}, logsumexp[BLOCK] = {};
};

// P^T and dS^T [keys, queries] of a block of queries and one of keys, from S^T and dP^T.
void score_gradients(const Segment& segment, int64_t i, int64_t b, float scale,
                     const QueryRows& of_queries, const float* scores, const float* dp,
                     bf16* weights, bf16* ds) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t j = 0; j < BLOCK; j += 16) {
    const __m512 delta = _mm512_load_ps(of_queries.delta + j);
    const __m512 logsumexp = _mm512_load_ps(of_queries.logsumexp + j);
    for (int64_t row = 0; row < BLOCK; ++row) {
      const int64_t at = row * BLOCK + j, first = segment.first_that_sees(b, i, row);
      const __mmask16 seen = mask16(segment.last_query(i) - j) & ~mask16(first - j);
      const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + at), factor);
      const __m512 weight = _mm512_maskz_mov_ps(seen, fast_exp(_mm512_sub_ps(score, logsumexp)));
      const __m512 change = _mm512_sub_ps(_mm512_loadu_ps(dp + at), delta);
      store_rounded(weights + at, 0xffff, weight);
      store_rounded(ds + at, 0xffff, _mm512_mul_ps(_mm512_mul_ps(weight, factor), change));
    }
  }
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
      for (const Segment& segment : tree.segments) {
        for (int64_t b = 0; b < segment.blocks(); ++b) {
          const int64_t place = (segment.block + b) * tile;
          load_keys(k + kv * dim, stride_kv, segment, b, cos, sin, dim, block.data());
          pack_b_transposed(block.data(), dim, keys + place);
          load_keys(v + kv * dim, stride_kv, segment, b, nullptr, nullptr, dim, block.data());
          pack_b(block.data(), dim, BLOCK, dim, values + place);
        }
        for (int64_t i = 0; i < segment.query_blocks(); ++i) {
          const int64_t first_row = segment.first_query(i), last_row = segment.last_query(i);
          const int64_t first = segment.query_token(i), blocks = segment.key_blocks(i);
          load_queries(q + head * dim, stride_q, segment, i, cos, sin, dim, queries.data());
          for (int64_t b = 0; b < blocks; ++b)
            matmul(BLOCK, dim, false, queries.data(), keys + segment.key_block(b) * tile,
                   s + b * square);
          for (int64_t row = first_row; row < last_row; ++row)
            logsumexp[head * tokens + first + row - first_row] =
                softmax_row(segment, i, row, scale, s, p);
          matmul(
              dim, BLOCK, blocks, false, p,
              [&](int64_t b) { return values + segment.key_block(b) * tile; }, result.data());
          store_block(result.data() + first_row * dim, stride_q, last_row - first_row, nullptr,
                      nullptr, dim, out + first * stride_q + head * dim);
        }
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
    Buffer<bf16> packed, scores;
    Buffer<float> sums;
    std::vector<bf16> queries(tile), packed_queries(tile), turned_queries(tile);
    std::vector<bf16> grads(tile), packed_grads(tile), turned_grads(tile);
    std::vector<bf16> p(square), ds(square);
    std::vector<float> s(square), dp(square), dq(tile);
    QueryRows of_queries;
#pragma omp for schedule(dynamic, 1)
    for (size_t t = 0; t < tasks.size(); ++t) {
      const Tree& tree = *tasks[t].tree;
      const int64_t head = tasks[t].head, kv = head / group;
      bf16* keys = packed.reserve(3 * tree.blocks * tile);
      bf16 *packed_keys = keys + tree.blocks * tile, *values = packed_keys + tree.blocks * tile;
      bf16* all_ds = scores.reserve(tree.most_keys * square);
      float* dk = sums.reserve(2 * tree.blocks * tile);
      float* dv = dk + tree.blocks * tile;
      // Writes the gradients of a segment's keys and values, when all that follow it have added to
      // them, and passes on those of the tokens that it has copies of.
      const auto finish = [&](const Segment& segment) {
        const int64_t place = segment.block * tile;
        add_copied(tree, segment, dim, dk);
        add_copied(tree, segment, dim, dv);
        if (shared) {
          const int64_t own = place + segment.offset() * dim;
          float* target = shared + (head * tokens + segment.start) * dim;
          std::memcpy(target, dk + own, segment.length * dim * sizeof(float));
          std::memcpy(target + heads * tokens * dim, dv + own,
                      segment.length * dim * sizeof(float));
          return;
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
      };
      int64_t last = -1;  // the end of the chain whose blocks are held
      const auto finish_until = [&](int64_t parent) {
        for (; last != parent; last = tree.segments[last].parent) finish(tree.segments[last]);
      };
      for (size_t number = 0; number < tree.segments.size(); ++number) {
        const Segment& segment = tree.segments[number];
        finish_until(segment.parent);
        last = int64_t(number);
        for (int64_t b = 0; b < segment.blocks(); ++b) {
          const int64_t place = (segment.block + b) * tile;
          load_keys(k + kv * dim, stride_kv, segment, b, cos, sin, dim, keys + place);
          pack_b(keys + place, dim, BLOCK, dim, packed_keys + place);
          load_keys(v + kv * dim, stride_kv, segment, b, nullptr, nullptr, dim, values + place);
          std::memset(dk + place, 0, tile * sizeof(float));
          std::memset(dv + place, 0, tile * sizeof(float));
        }
        for (int64_t i = 0; i < segment.query_blocks(); ++i) {
          const int64_t first_row = segment.first_query(i), last_row = segment.last_query(i);
          const int64_t first = segment.query_token(i), blocks = segment.key_blocks(i);
          const int64_t offset = first * stride_q + head * dim;
          load_queries(q + head * dim, stride_q, segment, i, cos, sin, dim, queries.data());
          pack_b(queries.data(), dim, BLOCK, dim, packed_queries.data());
          pack_b_transposed(queries.data(), dim, turned_queries.data());
          load_queries(grad + head * dim, stride_q, segment, i, nullptr, nullptr, dim,
                       grads.data());
          pack_b(grads.data(), dim, BLOCK, dim, packed_grads.data());
          pack_b_transposed(grads.data(), dim, turned_grads.data());
          for (int64_t row = first_row; row < last_row; ++row) {
            const bf16* o = out + offset + (row - first_row) * stride_q;
            fetch_row(o + ROWS_AHEAD * stride_q, dim);
            of_queries.delta[row] = dot(grads.data() + row * dim, o, dim);
            of_queries.logsumexp[row] = logsumexp[head * tokens + first + row - first_row];
          }
          for (int64_t b = 0; b < blocks; ++b) {
            const int64_t place = segment.key_block(b) * tile;
            matmul(BLOCK, dim, false, keys + place, turned_queries.data(), s.data());
            matmul(BLOCK, dim, false, values + place, turned_grads.data(), dp.data());
            score_gradients(segment, i, b, scale, of_queries, s.data(), dp.data(), p.data(),
                            ds.data());
            matmul(dim, BLOCK, true, ds.data(), packed_queries.data(), dk + place);
            matmul(dim, BLOCK, true, p.data(), packed_grads.data(), dv + place);
            transpose_block(ds.data(), all_ds + b * square);
          }
          matmul(
              dim, BLOCK, blocks, false, all_ds,
              [&](int64_t b) { return packed_keys + segment.key_block(b) * tile; }, dq.data());
          store_block(dq.data() + first_row * dim, stride_q, last_row - first_row,
                      factors_at(cos, first * dim), factors_at(sin, first * dim), dim,
                      grad_q + offset);
        }
      }
      finish_until(-1);
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
