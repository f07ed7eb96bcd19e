// Attention of queries over a state's keys and values, of their own sequence's rows or of those of another domain.
// Global rows, the first of each sequence, are seen by every query, and attend to every key themselves, with queries
// and a state of their own where these are named. A block-sparse pattern names spans of keys for each block of queries
// instead. Of a state that begins with a row for each block, all queries see these too.
#pragma once

#include <algorithm>

#include "runtime/block_pattern.h"
#include "runtime/lowering.h"
#include "runtime/operators/key_values.h"
#include "runtime/worker.h"

namespace pocketformer {

class AttentionStep final : public Step {
 public:
  struct Shape {
    int heads;
    float scale, softcap;
    KeyRange range;
    const float* bias;
    size_t ld_bias;
    int bias_center, bias_of_key = -1;
    const float* summary_bias = nullptr;  // as large
    int summarized = 0;                   // rows of a block that has a row before the keys of the sequence's own
    bool fine = false;
    int keys = kNone;  // an input of indices, or kNone
    int globals = 0, more_globals = kNone;
    BlockPattern blocks;
    Operand sizes;  // how many tokens each key counts for: from the column `logarithms` on their logarithms
    int logarithms = 0;
  };
  struct Source {
    int state;
    Operand q, q_scale;
  };

  AttentionStep(const State& s, int domain, const Source& local, const Source& global, Operand out, const Shape& shape)
      : Step("attention", Split::kHeads), domain_(domain), local_(local), global_(global), out_(out), shape_(shape) {
    if (domain != s.domain && shape.summarized == 0) work_.keys = s.domain;
    work_.summarized = shape.summarized;
    work_.int8 = s.int8;
    work_.scores = shape.heads;
    work_.score_multiply_adds = (shape.fine ? 3.0 : 2.0) * s.head_dim;
    work_.left = shape.range.left;
    work_.right = shape.range.right;
    work_.globals = shape.globals;
    work_.blocks = shape.blocks;
  }

  void run(const Worker& w) const override {
    const int key_domain = w.program().states[static_cast<size_t>(local_.state)].domain;
    const int32_t* const first_keys = indices(w, shape_.keys);
    const int32_t* const more = indices(w, shape_.more_globals);
    // Heads first; with more threads than heads, each head's queries are split too.
    const int head_parts = std::min(w.parts(), shape_.heads), query_parts = w.parts() / head_parts;
    const Span heads = share(shape_.heads, w.part() % head_parts, head_parts);
    const int query_part = w.part() / head_parts;
    if (query_part >= query_parts) return;
    w.for_each_piece(domain_, [&](int sequence, int row, int count) {
      const Span queries = share(count, query_part, query_parts);
      if (queries.empty()) return;
      const int first = row + queries.begin, last = row + queries.end;
      const int length = w.keys(key_domain, sequence);
      if (shape_.summarized != 0) return attend_summaries(w, sequence, first, last, heads, length);
      if (shape_.blocks.holds(length)) return attend_blocks(w, sequence, first, last, heads, length);
      const int globals = std::min(shape_.globals + (more == nullptr ? 0 : more[sequence]), length);
      const int local = std::clamp(globals - w.position(domain_, sequence, first), 0, last - first) + first;
      const int keys = seen_keys(first_keys == nullptr ? 0 : first_keys[sequence], length);
      const KeySpan span{0, globals};
      attend(w, global_, sequence, first, local, heads, {keys, {kUnlimited, kUnlimited}});
      attend(w, local_, sequence, local, last, heads, {keys, shape_.range, globals, globals == 0 ? 0 : 1, &span});
    });
  }

  Work work() const override { return work_; }

 private:
  // Of the first `keys` of a sequence those of `spans`, and from `first` on those in the range.
  struct Seen {
    int keys;
    KeyRange range;
    int first = 0, count = 0;
    const KeySpan* spans = nullptr;
    int ahead = 0;  // keys before those of the queries' own rows
  };

  static const int32_t* indices(const Worker& w, int input) { return input == kNone ? nullptr : w.indices(input); }

  void attend_blocks(const Worker& w, int sequence, int first, int last, const Span& heads, int length) const {
    KeySpan spans[BlockPattern::kSpans];
    for (int begin = first, end; begin < last; begin = end) {
      const int64_t position = w.position(domain_, sequence, begin), block = position / shape_.blocks.size;
      end = begin + static_cast<int>(std::min((block + 1) * shape_.blocks.size - position, int64_t{last} - begin));
      const int count = shape_.blocks.spans(block, length, spans);
      attend(w, local_, sequence, begin, end, heads, {length, {kUnlimited, kUnlimited}, length, count, spans});
    }
  }

  // The bias of a block is that of the distance to its first row, in blocks: so rows behind the last whole block, which
  // belong to that, look it up as many rows nearer.
  void attend_summaries(const Worker& w, int sequence, int first, int last, const Span& heads, int keys) const {
    const int size = shape_.summarized, length = w.length(domain_, sequence), blocks = length / size;
    const int whole = std::clamp(blocks * size - w.position(domain_, sequence, first), 0, last - first) + first;
    const auto attend_from = [&](int begin, int end, int nearer) {
      const float* const bias = shape_.summary_bias + shape_.bias_center - blocks - nearer;
      const KeySpan span{0, blocks, 1, shape_.summary_bias == nullptr ? nullptr : bias, -size};
      attend(w, local_, sequence, begin, end, heads, {keys, shape_.range, blocks, blocks == 0 ? 0 : 1, &span, blocks});
    };
    attend_from(first, whole, 0);
    attend_from(whole, last, size);
  }

  // The rows [begin, end) of a sequence over the keys that they see.
  void attend(const Worker& w, const Source& from, int sequence, int begin, int end, const Span& heads,
              const Seen& seen) const {
    if (begin >= end) return;
    const State& s = w.program().states[static_cast<size_t>(from.state)];
    const StoredState stored = w.stored(from.state, sequence);
    const bool sized = static_cast<bool>(shape_.sizes);
    const AttentionArgs common{.queries = end - begin,
                               .first_position = w.position(domain_, sequence, begin) + seen.ahead - stored.base,
                               .keys = seen.keys - stored.base,
                               .segment_slot = stored.first_slot,
                               .heads = shape_.heads,
                               .kv_heads = s.heads,
                               .head_dim = s.head_dim,
                               .head_stride = s.head_stride,
                               .head_begin = heads.begin,
                               .head_end = heads.end,
                               .scale = shape_.scale,
                               .softcap = shape_.softcap,
                               .range = seen.range,
                               .first_key = seen.first,
                               .span_count = seen.count,
                               .spans = seen.spans,
                               .bias = sized ? w.at(shape_.sizes, sequence) : shape_.bias,
                               .ld_bias = shape_.ld_bias,
                               .bias_center = sized ? shape_.logarithms : shape_.bias_center,
                               .bias_of_query = sized ? 0 : 1,
                               .bias_of_key = sized ? 1 : shape_.bias_of_key,
                               .out = w.at(out_, begin),
                               .ldo = w.ld(out_)};
    if (s.int8) {
      w.kernels().attention_i8(
          {w.at<int8_t>(from.q, begin), w.at(from.q_scale, begin), key_values_i8(s, stored), common, shape_.fine});
    } else {
      w.kernels().attention_f32({w.at(from.q, begin), w.ld(from.q), key_values_f32(s, stored), common});
    }
    const size_t padding = common.ldo - static_cast<size_t>(out_.width);
    if (padding == 0 || heads.end != shape_.heads) return;
    for (int i = 0; i < common.queries; ++i) {
      std::memset(common.out + static_cast<size_t>(i + 1) * common.ldo - padding, 0, padding * sizeof(float));
    }
  }

  // Of a sequence whose first `count` keys alone are seen: no fewer than its last query needs to see one.
  int seen_keys(int count, int length) const {
    return count == 0 ? length : std::min(std::max(count, length - shape_.range.left), length);
  }

  int domain_;
  Source local_, global_;
  Operand out_;
  Shape shape_;
  Work work_;
};

struct Attention {
  static constexpr int64_t kMaxPairs = 1 << 14;  // whose places in a table are integers of 31 bits
  static constexpr int64_t kMaxRepeats = 1024;
  std::string q, state, out, bias, summary_bias, pair_bias, keys, more_globals, global_q, global_state, sizes;
  double scale = 0, softcap = 0;
  bool causal = false, fine = false;
  int64_t left = -1, right = -1, globals = 0;
  int64_t block = 0, block_window = 0, block_globals = 0, block_repeats = 0, block_dense = 0;

  static constexpr const char* kName = "attention";
  static constexpr const char* kDoc =
      "`out = softmax(q · kᵀ · scale + bias) · v` over the keys of the query's sequence that it sees; with a "
      "`softcap` c the softmax is that of c · tanh(q · kᵀ · scale / c)";
  static constexpr auto fields() {
    return std::tuple{
        name("q", &Attention::q, "queries: from `quantize_heads` for an int8 state, rows of heads for others"),
        name(
            "state", &Attention::state,
            "keys and values, each head for as many query heads in a row; where they are of another domain than `q`, "
            "every row sees all of its sequence; but where that has `summarized` rows of the queries', of its own keys "
            "those in its range, and of all blocks theirs"),
        name("out", &Attention::out, "rows of heads side by side"),
        number_above("scale", &Attention::scale, 0, "of q · k, before rotation"),
        optional_from("softcap", &Attention::softcap, 0, "what scores stay below, in absolute value; 0: no such cap"),
        flag("causal", &Attention::causal, "no later key is seen"),
        flag("fine", &Attention::fine, "the softmax of int8 attention is rounded to 14 bits instead of 7"),
        optional_integer("left", &Attention::left, -1, kMaxRows, "keys seen before the query's own; −1: all"),
        optional_integer("right", &Attention::right, -1, kMaxRows, "keys seen after it; −1: all"),
        optional_name("bias", &Attention::bias,
                      "tensor f32 [heads, 2 · max_rows − 1 up to 16s], of the keys' domain, entry (query − key) + "
                      "max_rows − 1"),
        optional_name(
            "summary_bias", &Attention::summary_bias,
            "beside `bias` and as large, of keys that summarize blocks: entry (query − first row of the block) "
            "+ max_rows − 1, where rows behind the last whole block count as many fewer as a block has"),
        optional_name("pair_bias", &Attention::pair_bias,
                      "tensor f32 [heads, max_rows, max_rows up to 16s], entry [head, key, query]"),
        optional_name(
            "keys", &Attention::keys,
            "an input of indices, one a sequence: its queries see no keys but the first so many, of which there are at "
            "least as many as leave one within `left` of the last query; 0: all"),
        optional_integer("globals", &Attention::globals, 0, kMaxRows,
                         "first rows of each sequence that are global: all queries see their keys, and they all keys"),
        optional_name("more_globals", &Attention::more_globals,
                      "an input of indices, one a sequence: how many more first rows are global"),
        optional_name("global_q", &Attention::global_q, "queries of the global rows, if not `q`"),
        optional_name("global_state", &Attention::global_state, "that they attend to, if not `state`; like it"),
        optional_name("sizes", &Attention::sizes,
                      "the `match` that made these tokens: the logarithm of a key's size is added to its scores"),
        optional_integer("block", &Attention::block, 0, kMaxRows, "rows of a block where attention is block-sparse"),
        optional_integer("block_window", &Attention::block_window, 0, kMaxRows,
                         "blocks seen on each side of the query's own"),
        optional_integer("block_globals", &Attention::block_globals, 0, kMaxRows,
                         "first blocks, and as many last ones, that all queries see and whose queries see all"),
        optional_integer("block_repeats", &Attention::block_repeats, 0, kMaxRepeats,
                         "how many times more the keys of the first ones count to other queries than these"),
        optional_integer("block_dense", &Attention::block_dense, 0, kMaxRows,
                         "a sequence of at most so many rows has no such pattern: all see all")};
  }

  void lower(Lowering& l) const {
    const int index = l.state("state", state);
    const State& s = l.program().states[static_cast<size_t>(index)];
    const Value from = queries(l, "q", q, s);
    const Domain& keyed = l.program().domains[static_cast<size_t>(s.domain)];
    const bool summaries = keyed.summarized != 0 && keyed.of == from.domain,
               across = from.domain != s.domain && !summaries,
               whole = left < 0 && right < 0 && !causal && bias.empty() && pair_bias.empty();
    l.check(
        summaries ? !causal && pair_bias.empty() && keys.empty() && sizes.empty() && block == 0 : summary_bias.empty(),
        "state", "is '", state, "' over '", keyed.name,
        summaries ? "', which summarizes blocks: beside 'causal', 'pair_bias', 'keys', 'sizes' or 'block'"
                  : "', which summarizes no blocks that a 'summary_bias' could be of");
    l.check(summary_bias.empty() || !bias.empty(), "summary_bias", "is '", summary_bias, "' without a 'bias'");
    l.check(!across || !keyed.halting, "state", "is '", state, "' over '", keyed.name,
            "', of which there may be no key");
    l.check(!across || (l.domain_of(from).has_offsets() && whole && keys.empty() && !s.kept), "q", "names '", q,
            "', of another domain than the state; such rows are of sequences, and see all keys of a state that is not "
            "kept, without a bias");
    const int heads = s.int8 ? from.scale.width : from.rows.width / s.head_dim;
    l.check(heads % s.heads == 0 && (s.int8 || heads * s.head_dim == from.rows.width), "q", "names '", q, "' of ",
            heads, " heads; they must be a multiple of the state's ", s.heads);
    AttentionStep::Shape shape{};
    shape.heads = heads;
    // Queries and keys that are both rotated have a product as many times as large.
    shape.scale = static_cast<float>(scale) / static_cast<float>(std::max(s.rotate, 1));
    shape.range = {left < 0 ? kUnlimited : static_cast<int>(left), causal      ? 0
                                                                   : right < 0 ? kUnlimited
                                                                               : static_cast<int>(right)};
    shape.softcap = static_cast<float>(softcap);
    shape.fine = fine;
    l.check(!fine || s.int8, "fine", "is true; only int8 attention rounds its softmax");
    l.check(softcap == 0 || (bias.empty() && pair_bias.empty()), "softcap", "is ", softcap,
            " beside a bias; only plain scores are capped");
    l.check(pair_bias.empty() || (bias.empty() && !s.kept), "pair_bias", "is '", pair_bias,
            "' beside a bias or a kept state");
    if (!bias.empty()) {
      const int64_t reach = keyed.max_rows, length = padded(2 * reach - 1);
      if (!summary_bias.empty()) shape.summary_bias = l.tensors().take_floats(l.place(), summary_bias, {heads, length});
      shape.bias = l.tensors().take_floats(l.place(), bias, {heads, length});
      shape.ld_bias = static_cast<size_t>(length);
      shape.bias_center = static_cast<int>(reach) - 1;
    }
    if (!pair_bias.empty()) {
      const int64_t reach = l.domain_of(from).max_rows, length = padded(reach);
      l.check(reach <= kMaxPairs, "pair_bias", "is '", pair_bias, "' of ", reach, " rows; at most ", kMaxPairs,
              " are possible");
      shape.bias = l.tensors().take_floats(l.place(), pair_bias, {heads, reach, length});
      shape.ld_bias = static_cast<size_t>(reach * length);
      shape.bias_of_key = static_cast<int>(length);
    }
    if (!keys.empty()) shape.keys = l.sequence_input("keys", keys, from);
    l.check(keys.empty() || !s.kept, "keys", "is '", keys, "'; a kept state has keys of earlier runs");
    const bool some = globals > 0 || !more_globals.empty();
    shape.globals = static_cast<int>(globals);
    if (!more_globals.empty()) shape.more_globals = l.sequence_input("more_globals", more_globals, from);
    l.check(!some || (!causal && !s.kept && keys.empty()), "globals",
            "is given beside 'causal', 'keys' or a kept state; global rows see all keys");
    l.check(some || (global_q.empty() && global_state.empty()), "global_q", "or 'global_state' is given; no row is ",
            "global");
    const int other = global_state.empty() ? index : l.state("global_state", global_state);
    const State& t = l.program().states[static_cast<size_t>(other)];
    l.check(other == index || (t.int8 == s.int8 && t.half == s.half && t.heads == s.heads && t.head_dim == s.head_dim &&
                               t.rotate == s.rotate && t.domain == s.domain && !t.kept),
            "global_state", "names '", t.name, "', which differs from '", state, "' in more than its name");
    const Value global = global_q.empty() ? from : queries(l, "global_q", global_q, t);
    l.check(global.rows.width == from.rows.width && global.domain == from.domain, "global_q", "names '", global_q,
            "' of another width or domain than 'q'");
    l.check(!some || (!across && !summaries), "globals", "is given, but '", q, "' is of another domain than the state");
    shape.summarized = summaries ? static_cast<int>(keyed.summarized) : 0;
    l.check(sizes.empty() || (shape.bias == nullptr && softcap == 0 && !some && !s.kept && !across), "sizes", "is '",
            sizes, "', beside a bias, a softcap, global rows, queries of another domain or a kept state");
    const Value matched = sizes.empty() ? Value{} : l.matches("sizes", sizes, s.domain);
    shape.blocks = {block, block_window, block_globals, block_repeats, block_dense};
    const bool others =
        across || causal || left >= 0 || right >= 0 || some || !keys.empty() || !sizes.empty() || s.kept;
    l.check(block == 0 || !others, "block", "is ", block, " beside 'causal', 'left', 'right', 'keys', 'sizes', ",
            "global rows, queries of another domain or a kept state; blocks alone say what is seen");
    l.check(block != 0 || (block_window == 0 && block_globals == 0 && block_repeats == 0 && block_dense == 0), "block",
            "is 0 beside a 'block_…' that is not; the pattern needs a block");
    l.begin_stage(from.domain);
    l.attend(index, shape.range);
    if (other != index) l.attend(other, {kUnlimited, kUnlimited});
    const Operand to = l.write(out, from.domain, static_cast<int64_t>(heads) * s.head_dim);
    shape.sizes = l.read(matched.rows);
    shape.logarithms = static_cast<int>(matched.places + matched.sizes);
    l.emit<AttentionStep>(s, from.domain, AttentionStep::Source{index, l.read(from.rows), l.read(from.scale)},
                          AttentionStep::Source{other, l.read(global.rows), l.read(global.scale)}, to, shape);
  }

 private:
  static Value queries(Lowering& l, const char* field, const std::string& name, const State& s) {
    const Value from = s.int8 ? l.value(field, name) : l.floats(field, name);
    l.check(from.heads() == s.int8 && (!s.int8 || (from.head_dim == s.head_dim && from.rotate == s.rotate)), field,
            "names '", name, "', which is not from a `quantize_heads` of head_dim ", s.head_dim, " and rotate ",
            s.rotate);
    return from;
  }
};

}  // namespace pocketformer
