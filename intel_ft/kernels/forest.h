// The segments of a packed row as trees, whose keys attention.cpp holds in blocks.
//
// Segments of 70 and 5 tokens, of which the second follows the first (parents [-1, 0]), are one
// tree of 4 blocks of up to 32 tokens. The first segment has blocks 0 to 2, of 32, 32 and 6 tokens;
// the second has block 3, and its queries see all tokens of blocks 0 to 2 before their own.

#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace {

constexpr int64_t BLOCK = 32;  // queries and keys of one matmul

struct Keys {  // a block of keys of a tree, and how many tokens it has
  int64_t block, count;
};

struct Segment {
  int64_t start, length;
  int64_t block;             // its first block in the buffers of the tree
  std::vector<Keys> before;  // the blocks of the segments that it follows, from the root on
  int64_t blocks() const { return (length + BLOCK - 1) / BLOCK; }
  int64_t count(int64_t b) const { return std::min(BLOCK, length - b * BLOCK); }
  // The block of keys j that query block i sees, 0 <= j <= before.size() + i.
  int64_t key_block(int64_t j) const {
    const int64_t own = j - int64_t(before.size());
    return own < 0 ? before[j].block : block + own;
  }
  // How many tokens of it query `row` of block i sees.
  int64_t visible(int64_t j, int64_t i, int64_t row) const {
    const int64_t own = j - int64_t(before.size());
    return own < 0 ? before[j].count : own < i ? BLOCK : row + 1;
  }
};

struct Tree {  // segments that follow each other: neighbours in the row, parents first
  std::vector<Segment> segments;
  int64_t tokens = 0, blocks = 0, most_keys = 0;
};

std::vector<Tree> make_trees(const int64_t* bounds, const int64_t* parents, int64_t segments) {
  std::vector<Tree> trees;
  int64_t first = 0;  // the number of the last tree's root
  for (int64_t i = 0; i < segments; ++i) {
    const int64_t parent = parents ? parents[i] : -1;
    if (parent < 0) {
      trees.emplace_back();
      first = i;
    }
    Tree& tree = trees.back();
    Segment segment{bounds[i], bounds[i + 1] - bounds[i], tree.blocks, {}};
    if (parent >= 0) {
      const Segment& above = tree.segments[parent - first];
      segment.before = above.before;
      for (int64_t b = 0; b < above.blocks(); ++b)
        segment.before.push_back({above.block + b, above.count(b)});
    }
    tree.tokens += segment.length;
    tree.blocks += segment.blocks();
    tree.most_keys = std::max(tree.most_keys, int64_t(segment.before.size()) + segment.blocks());
    tree.segments.push_back(std::move(segment));
  }
  // The longest first, so that threads finish together.
  std::stable_sort(trees.begin(), trees.end(),
                   [](const Tree& a, const Tree& b) { return a.tokens > b.tokens; });
  return trees;
}

}  // namespace
