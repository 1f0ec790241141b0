// The segments of a packed row as trees, whose keys attention.cpp holds in blocks.
//
// Blocks of keys are aligned to positions: block j of a sequence has its tokens 32 j to 32 j + 31,
// whether it shares some of them or not. Segments of 70 and 45 tokens, of which the second follows
// the first (parents [-1, 0]), are one tree. The first segment has blocks 0 to 2, of 32, 32 and 6
// tokens. The second begins at position 70, so its blocks 3 and 4 are its sequence's third and
// fourth: block 3 has copies of the 6 tokens of block 2, then 26 of its own, and block 4 has 19.
// Its queries see blocks 0 and 1 and then its own, as if the sequence were alone. Its blocks of
// queries are aligned in the same way if that takes no more of them, as here; else the first one
// begins with its first token.
//
// Blocks are held for one chain at a time, as a stack: a third segment that followed the first
// would take blocks 3 and on from the second. So a tree of many short segments stays in the cache
// as each of its sequences would alone.

#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace {

constexpr int64_t BLOCK = 32;  // queries and keys of one matmul

struct Segment {
  int64_t start, length;        // its tokens in the row
  int64_t parent;               // in the tree, -1 for none
  int64_t block;                // its first block in the buffers, after those of its parent
  std::vector<int64_t> before;  // whole blocks of the segments that it follows, from the root on
  std::vector<int64_t> copied;  // the tokens of those segments that its first block begins with
  int64_t offset() const { return int64_t(copied.size()); }
  int64_t blocks() const { return blocks_of(offset() + length); }
  // The rows of its block b of keys that hold its own tokens: from first_key(b) to last_key(b) - 1.
  int64_t first_key(int64_t b) const { return b ? 0 : offset(); }
  int64_t last_key(int64_t b) const { return std::min(BLOCK, offset() + length - b * BLOCK); }
  // The token in row `row` of block b of keys.
  int64_t key_token(int64_t b, int64_t row) const {
    return b == 0 && row < offset() ? copied[row] : start + b * BLOCK + row - offset();
  }
  // Rows of its first block of queries before the first query.
  int64_t lead() const { return blocks() == blocks_of(length) ? offset() : 0; }
  int64_t query_blocks() const { return blocks_of(lead() + length); }
  int64_t first_query(int64_t i) const { return i ? 0 : lead(); }
  int64_t last_query(int64_t i) const { return std::min(BLOCK, lead() + length - i * BLOCK); }
  // The token of the first query of block i.
  int64_t query_token(int64_t i) const { return start + i * BLOCK + first_query(i) - lead(); }
  // How many blocks of keys the queries of block i see, and the block of keys j of them.
  int64_t key_blocks(int64_t i) const { return position(i, last_query(i) - 1) / BLOCK + 1; }
  int64_t key_block(int64_t j) const {
    const int64_t own = j - int64_t(before.size());
    return own < 0 ? before[j] : block + own;
  }
  // How many tokens of it query `row` of block i sees.
  int64_t visible(int64_t j, int64_t i, int64_t row) const {
    return std::clamp<int64_t>(position(i, row) + 1 - j * BLOCK, 0, BLOCK);
  }

  // The first query of block i that sees token `row` of it; no earlier one does.
  int64_t first_that_sees(int64_t j, int64_t i, int64_t row) const {
    return std::max(first_query(i), row + j * BLOCK - position(i, 0));
  }

 private:
  static int64_t blocks_of(int64_t tokens) { return (tokens + BLOCK - 1) / BLOCK; }
  // The position of query `row` of block i in its sequence.
  int64_t position(int64_t i, int64_t row) const {
    return (int64_t(before.size()) + i) * BLOCK + offset() - lead() + row;
  }
};

struct Tree {  // segments that follow each other, each before its children and they before the next
  std::vector<Segment> segments;
  int64_t tokens = 0, blocks = 0, most_keys = 0;  // blocks: of the longest chain
};

// Adds a segment and all that follow it, of which `children` has the numbers.
void add_segments(const int64_t* bounds, const std::vector<std::vector<int64_t>>& children,
                  int64_t number, int64_t parent, Tree& tree) {
  Segment segment{bounds[number], bounds[number + 1] - bounds[number], parent, 0, {}, {}};
  if (parent >= 0) {
    const Segment& above = tree.segments[parent];
    const int64_t last = above.blocks() - 1, rows = above.last_key(last);
    segment.block = above.block + above.blocks();
    segment.before = above.before;
    for (int64_t b = 0; b < (rows == BLOCK ? last + 1 : last); ++b)
      segment.before.push_back(above.block + b);
    for (int64_t row = 0; row < rows % BLOCK; ++row)
      segment.copied.push_back(above.key_token(last, row));
  }
  tree.tokens += segment.length;
  tree.blocks = std::max(tree.blocks, segment.block + segment.blocks());
  tree.most_keys = std::max(tree.most_keys, segment.key_blocks(segment.query_blocks() - 1));
  const int64_t place = int64_t(tree.segments.size());
  tree.segments.push_back(std::move(segment));
  for (int64_t child : children[number]) add_segments(bounds, children, child, place, tree);
}

std::vector<Tree> make_trees(const int64_t* bounds, const int64_t* parents, int64_t segments) {
  std::vector<std::vector<int64_t>> children(segments);
  for (int64_t i = 0; i < segments; ++i)
    if (parents && parents[i] >= 0) children[parents[i]].push_back(i);
  std::vector<Tree> trees;
  for (int64_t i = 0; i < segments; ++i)
    if (!parents || parents[i] < 0) add_segments(bounds, children, i, -1, trees.emplace_back());
  // The longest first, so that threads finish together.
  std::stable_sort(trees.begin(), trees.end(),
                   [](const Tree& a, const Tree& b) { return a.tokens > b.tokens; });
  return trees;
}

}  // namespace
