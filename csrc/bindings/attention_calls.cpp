#include "bindings/attention_calls.h"

#include <cmath>
#include <cstring>
#include <string>

#include "bindings/bindings.h"
#include "core/finite.h"

namespace pocketformer::bindings {
namespace {

// Rows that a thread rounds or stores at a time: whole groups of the four keys whose values lie side by side.
constexpr int kStoredRows = 32;
// Queries that a thread attends with at a time: four vectors, for each of which the keys come from the nearest caches.
constexpr int kQueryRows = 64;

}  // namespace

Heads heads_of(const py::array_t<float>& array, const char* name) {
  require(array.ndim() == 3, name, " is ", describe(array), "; it must have shape (tokens, heads, head_dim)");
  const int64_t tokens = array.shape(0), heads = array.shape(1), head_dim = array.shape(2);
  require(heads >= 1 && heads <= 1024 && head_dim >= 1 && head_dim <= kMaxHeadDim && tokens <= kMostWidth, name, " is ",
          describe(array), "; it must have at most ", kMostWidth, " tokens, 1 to 1024 heads and a head_dim of 1 to ",
          kMaxHeadDim);
  return {array.data(), tokens, static_cast<int>(heads), static_cast<int>(head_dim)};
}

void note_not_finite(const Heads& x, int64_t begin, int rows, Offender& offender, int64_t step) {
  const int together = step == 1 ? rows : 1;
  for (int first = 0; first < rows; first += together) {
    const int64_t at = begin + first * step;
    const int row = first_not_finite(x.data + at * x.row(), static_cast<size_t>(x.row()), together);
    if (row < together) offender.note(at + row);
  }
}

void store_keys(const KernelTable& kernels, const Stored& stored, const Heads& k, const Heads& v, int64_t row,
                size_t slot, int rows, int64_t step) {
  const float *keys = k.data + row * k.row(), *values = v.data + row * v.row();
  const size_t ld = static_cast<size_t>(k.row() * step);
  const StoreArgs common{keys, ld, values, ld, rows, k.heads, k.head_dim, k.stride(), slot};
  if (const auto* kv = std::get_if<KeyValuesI8>(&stored)) {
    kernels.store_i8({common, 0, *kv});
  } else {
    kernels.store_f32({common, std::get<KeyValuesF32>(stored)});
  }
}

// What one thread attends with at a time: some of a sequence's queries and the heads that share a head of keys.
struct Attending::Part {
  const Sequence* sequence;
  int kv_head, begin, queries, position;
};

Attending::Attending(Heads q, int kv_heads, std::vector<Sequence> sequences, Object scale, const Pattern& pattern)
    : q_(q), kv_heads_(kv_heads), sequences_(std::move(sequences)), pattern_(pattern) {
  require(q.heads % kv_heads == 0, "q has ", q.heads, " heads; they must be a multiple of those of k and v, ",
          kv_heads);
  const auto bound = [](int64_t n) { return n < 0 || n > kUnlimited ? kUnlimited : static_cast<int>(n); };
  range_ = {bound(pattern.left), bound(pattern.right)};
  for (int64_t b = 0; pattern.block != 0 && b * pattern.block < sequences_.front().keys; ++b) {
    own_block_.push_back(false);
    for (const int64_t* key = pattern.keys + pattern.begins[b]; key < pattern.keys + pattern.begins[b + 1]; ++key) {
      const int64_t begin = *key * pattern.block,
                    end = std::min<int64_t>(begin + pattern.block, sequences_.front().keys);
      if (range_.right != 0 || *key < b) {
        spans_.push_back({static_cast<int>(begin), static_cast<int>(end)});
      } else {
        require(*key != b || !own_block_.back(), "pattern names block ", b, " twice for its own queries; with causal ",
                "they see it once");
        own_block_.back() = own_block_.back() || *key == b;
      }
    }
    block_ends_.push_back(spans_.size());
  }
  const double factor = scale.is_none() ? 1 / std::sqrt(static_cast<double>(q.head_dim)) : number(scale, "scale");
  require(factor > 0 && factor < 1e30, "scale is ", factor, "; it must be above 0");
  scale_ = static_cast<float>(factor);
}

void Attending::set_softcap(Object softcap) {
  if (softcap.is_none()) return;
  const double cap = number(softcap, "softcap");
  require(cap > 0 && cap < 1e30, "softcap is ", cap, "; it must be above 0");
  require(bias_ == nullptr, "softcap is ", cap, " beside a bias; only plain scores are capped: leave one of them out");
  softcap_ = static_cast<float>(cap);
}

void Attending::set_bias(Object bias) {
  if (bias.is_none()) return;
  const auto array = array_of<float>(bias, "bias", 2);
  require(array.shape(0) == q_.heads && array.shape(1) % 2 == 1 && array.shape(1) <= kMostWidth, "bias is ",
          describe(bias), "; it must have shape (heads, 2 * distance + 1), heads being ", q_.heads);
  require(all_finite(array.data(), static_cast<size_t>(array.size())),
          "bias holds NaN or infinity; pass finite numbers, and causal or window to hide keys");
  bias_ = array.data();
  reach_ = array.shape(1) / 2;
}

double Attending::multiply_adds() const {
  double pairs = 0;
  for (const Sequence& s : sequences_) {
    const double window = static_cast<double>(range_.left) + range_.right + 1 + static_cast<double>(pattern_.globals);
    const double blocks = static_cast<double>((spans_.size() + 1) * static_cast<size_t>(pattern_.block));
    pairs += s.queries * std::min<double>(s.keys, own_block_.empty() ? window : blocks / own_block_.size());
  }
  return 2 * pairs * static_cast<double>(q_.row());
}

std::vector<Attending::Part> Attending::parts() const {
  std::vector<Part> all;
  for (const Sequence& s : sequences_) {
    for (int head = 0; head < kv_heads_; ++head) {
      for (int begin = 0, count = 0; begin < s.queries; begin += count) {
        const int position = std::max(0, s.keys - s.queries) + begin;
        int64_t most = std::min(kQueryRows, s.queries - begin);
        if (position < pattern_.globals) most = std::min(most, pattern_.globals - position);
        if (pattern_.block != 0) most = std::min(most, pattern_.block - position % pattern_.block);
        count = static_cast<int>(most);
        all.push_back({&s, head, begin, count, position});
      }
    }
  }
  return all;
}

void Attending::run(const KernelTable& kernels, const Stored& stored, int threads, float* out, Offender& offender,
                    Scratch& scratch) const {
  const bool int8 = std::holds_alternative<KeyValuesI8>(stored);
  const size_t rows = static_cast<size_t>(q_.tokens), heads = static_cast<size_t>(q_.heads),
               stride = static_cast<size_t>(q_.stride());
  int8_t* const q = int8 ? scratch.take<int8_t>(rows * heads * stride) : nullptr;
  float* const q_scale = int8 ? scratch.take<float>(rows * heads) : nullptr;
  // The kernels look a bias up by distance without a clamp: a table as wide as this call's distances.
  int64_t before = 0, after = 0;  // the largest key − query and query − key
  for (const Sequence& s : sequences_) {
    before = std::max<int64_t>(before, s.queries - 1);
    after = std::max<int64_t>(after, s.keys - 1);
  }
  const size_t ld_bias = round_up(static_cast<size_t>(before + after + 1), kLanes);
  float* const bias = bias_ != nullptr ? scratch.take<float>(heads * ld_bias) : nullptr;
  if (scratch.counts()) return;
  for (size_t h = 0; bias != nullptr && h < heads; ++h) {
    const float* from = bias_ + static_cast<int64_t>(h) * (2 * reach_ + 1) + reach_;
    for (int64_t d = -before; d <= after; ++d)
      bias[h * ld_bias + static_cast<size_t>(d + before)] = from[std::clamp(d * pattern_.step, -reach_, reach_)];
  }
  std::vector<std::pair<const Sequence*, int>> blocks;
  for (const Sequence& s : sequences_) {
    for (int begin = 0; begin < s.queries; begin += kStoredRows) blocks.emplace_back(&s, begin);
  }
  parallel(threads, static_cast<int64_t>(blocks.size()), [&](int64_t index, int) {
    const auto& [s, begin] = blocks[static_cast<size_t>(index)];
    const int count = std::min(kStoredRows, s->queries - begin);
    const int64_t row = s->first_query + begin * s->step;
    note_not_finite(q_, row, count, offender, s->step);
    if (!int8) return;
    const size_t at = (s->quantized + static_cast<size_t>(begin)) * heads;
    kernels.quantize_heads({q_.data + row * q_.row(), static_cast<size_t>(q_.row() * s->step), count, q_.heads,
                            q_.head_dim, q_.stride(), 0, q + at * stride, q_scale + at});
  });
  const std::vector<Part> all = parts();
  const int share = q_.heads / kv_heads_;
  parallel(threads, static_cast<int64_t>(all.size()), [&](int64_t index, int) {
    const Part& part = all[static_cast<size_t>(index)];
    const Sequence& s = *part.sequence;
    const int64_t row = s.first_query + part.begin * s.step, ld = q_.row() * s.step;
    const KeySpan globals{0, static_cast<int>(std::min<int64_t>(pattern_.globals, s.keys))};
    AttentionArgs args{};
    args.queries = part.queries;
    args.first_position = part.position;
    args.keys = s.keys, args.segment_slot = s.slot;
    args.heads = q_.heads, args.kv_heads = kv_heads_, args.head_dim = q_.head_dim, args.head_stride = q_.stride();
    args.head_begin = part.kv_head * share, args.head_end = args.head_begin + share;
    args.scale = scale_, args.softcap = softcap_, args.range = range_;
    if (part.position < globals.end) {
      args.range = {kUnlimited, kUnlimited};
    } else if (globals.end > 0) {
      args.spans = &globals, args.span_count = 1, args.first_key = globals.end;
    }
    if (pattern_.block != 0) {
      const size_t b = static_cast<size_t>(part.position / pattern_.block), first = b == 0 ? 0 : block_ends_[b - 1];
      args.spans = spans_.data() + first, args.span_count = static_cast<int>(block_ends_[b] - first);
      args.first_key = own_block_[b] ? static_cast<int>(static_cast<int64_t>(b) * pattern_.block) : s.keys;
    }
    args.bias = bias, args.ld_bias = ld_bias, args.bias_center = static_cast<int>(before);
    args.out = out + row * q_.row(), args.ldo = static_cast<size_t>(ld);
    if (int8) {
      const size_t at = (s.quantized + static_cast<size_t>(part.begin)) * heads;
      kernels.attention_i8({q + at * stride, q_scale + at, std::get<KeyValuesI8>(stored), args});
    } else {
      kernels.attention_f32({q_.data + row * q_.row(), static_cast<size_t>(ld), std::get<KeyValuesF32>(stored), args});
    }
  });
}

namespace {

// Sequences of one call and the slots that they take.
std::vector<Sequence> sequences_of(Object offsets, const Heads& q, const Heads& k, bool positions, int64_t step,
                                   size_t& slots) {
  slots = 0;
  std::vector<Sequence> all;
  size_t quantized = 0;
  const auto add = [&](int64_t query, int64_t queries, int64_t key, int64_t keys) {
    for (int64_t r = 0; r < std::min(step, std::max<int64_t>(keys, 1)); ++r) {
      // Tokens r, r + step, …: of the queries, which are the last of the keys, those from `skipped` on.
      const int64_t skipped = step == 1 ? 0 : ((r - keys + queries) % step + step) % step;
      const int64_t own_queries = (queries - skipped + step - 1) / step, own_keys = (keys - r + step - 1) / step;
      if (queries > skipped) {
        all.push_back({query + skipped, static_cast<int>(own_queries), key + r, static_cast<int>(own_keys), slots, step,
                       quantized});
        quantized += static_cast<size_t>(own_queries);
      }
      slots += round_up(static_cast<size_t>(own_keys), kLanes);
    }
  };
  if (offsets.is_none()) {
    require(k.tokens >= 1 || q.tokens == 0, "k has no rows; a query needs a key");
    require(!positions || q.tokens <= k.tokens, "q has ", q.tokens, " rows and k ", k.tokens,
            "; with causal, window, pattern or bias the queries are the last of the keys' positions");
    add(0, q.tokens, 0, k.tokens);
    return all;
  }
  const auto array = array_of<int64_t>(offsets, "offsets", 1);
  require(q.tokens == k.tokens, "q has ", q.tokens, " rows and k ", k.tokens,
          "; with offsets both are the same tokens");
  const int64_t *at = array.data(), count = array.size();
  require(count >= 1 && at[0] == 0 && at[count - 1] == q.tokens && std::is_sorted(at, at + count),
          "offsets must ascend from 0 to the number of tokens, ", q.tokens);
  for (int64_t i = 0; i + 1 < count; ++i) add(at[i], at[i + 1] - at[i], at[i], at[i + 1] - at[i]);
  return all;
}

Stored place(bool int8, int kv_heads, size_t slots, int head_stride, Scratch& scratch) {
  const size_t rows = static_cast<size_t>(kv_heads) * slots, elements = rows * static_cast<size_t>(head_stride);
  if (!int8) {
    float* const k = scratch.take<float>(elements);
    return KeyValuesF32{k, scratch.take<float>(elements), slots};
  }
  KeyValuesI8 kv{};
  kv.k = scratch.take<uint8_t>(elements), kv.k_scale = scratch.take<float>(rows);
  kv.v = scratch.take<int8_t>(elements), kv.v_scale = scratch.take<float>(rows);
  kv.capacity = slots;
  return kv;
}

// Slots between a sequence's last key and the next sequence hold what an earlier call left: it must be finite.
void clear_unused(const Stored& stored, int kv_heads, int head_stride, const Sequence& s) {
  const size_t begin = s.slot + static_cast<size_t>(s.keys), end = round_up(begin, kLanes);
  for (size_t h = 0; h < static_cast<size_t>(kv_heads); ++h) {
    if (const auto* kv = std::get_if<KeyValuesI8>(&stored)) {
      std::fill(kv->k_scale + h * kv->capacity + begin, kv->k_scale + h * kv->capacity + end, 0.0f);
      std::fill(kv->v_scale + h * kv->capacity + begin, kv->v_scale + h * kv->capacity + end, 0.0f);
    } else {
      const auto& floats = std::get<KeyValuesF32>(stored);
      const size_t stride = static_cast<size_t>(head_stride), first = h * floats.capacity;
      std::fill(floats.k + (first + begin) * stride, floats.k + (first + end) * stride, 0.0f);
      std::fill(floats.v + (first + begin) * stride, floats.v + (first + end) * stride, 0.0f);
    }
  }
}

// Key blocks of each query block of a sequence of `keys` keys.
void take_blocks(const py::array_t<int64_t>& begins, const py::array_t<int64_t>& keys, int64_t tokens,
                 Pattern& pattern) {
  pattern.begins = begins.data(), pattern.keys = keys.data();
  const int64_t count = (tokens + pattern.block - 1) / pattern.block;
  const int64_t* const end = pattern.begins + begins.size();
  require(begins.size() == count + 1, "pattern has keys of ", begins.size() - 1, " query blocks; ", tokens,
          " keys are ", count, " blocks of ", pattern.block);
  require(pattern.begins[0] == 0 && std::is_sorted(pattern.begins, end) && end[-1] == keys.size(),
          "pattern has begins that do not ascend from 0 to the ", keys.size(), " blocks named");
  for (int64_t i = 0; i < keys.size(); ++i) {
    require(pattern.keys[i] >= 0 && pattern.keys[i] < count, "pattern names block ", pattern.keys[i], "; there are ",
            count, ", numbered from 0");
  }
}

py::array_t<float> attention(Object q, Object k, Object v, int64_t left, int64_t right, Object bias, Object offsets,
                             const std::string& dtype, Object scale, Object threads, Object out, int64_t step,
                             int64_t globals, int64_t block, Object begins, Object blocks, Object softcap) {
  const KernelTable& kernels = current_kernels();
  require(dtype == "int8" || dtype == "float32", "dtype is '", dtype, "'; it must be int8 or float32");
  const bool int8 = dtype == "int8";
  const auto q_array = checked_array<float>(q, "q"), k_array = checked_array<float>(k, "k"),
             v_array = checked_array<float>(v, "v");
  const Heads queries = heads_of(q_array, "q"), keys = heads_of(k_array, "k"), values = heads_of(v_array, "v");
  require(keys.head_dim == queries.head_dim, "k is ", describe(k), "; its head_dim must be that of q, ",
          queries.head_dim);
  require(shape_of(k_array) == shape_of(v_array), "v is ", describe(v), "; it must have the shape of k, ",
          shape_text(shape_of(k_array)));
  auto result = result_array<float>(out, shape_of(q_array));
  if (!out.is_none()) {
    require_apart(q_array, "q", result);
    require_apart(k_array, "k", result);
    require_apart(v_array, "v", result);
  }
  size_t slots = 0;
  Pattern pattern{left, right, step, globals, block};
  require(step >= 1 && globals >= 0 && block >= 0 && block <= kMostWidth, "pattern has a dilation of ", step, ", ",
          globals, " global tokens and blocks of ", block, "; they are at least 1, 0 and 1");
  const bool positions = left >= 0 || right >= 0 || step > 1 || globals > 0 || block > 0 || !bias.is_none();
  const std::vector<Sequence> sequences = sequences_of(offsets, queries, keys, positions, step, slots);
  py::array_t<int64_t> begin_array, block_array;
  if (block > 0) {
    require(offsets.is_none(), "offsets is given beside a pattern of blocks, which is that of one sequence");
    begin_array = array_of<int64_t>(begins, "begins", 1), block_array = array_of<int64_t>(blocks, "blocks", 1);
    take_blocks(begin_array, block_array, keys.tokens, pattern);
    if (sequences.empty()) pattern.block = 0;
  }
  Attending attending(queries, keys.heads, sequences, scale, pattern);
  attending.set_bias(bias);
  attending.set_softcap(softcap);
  const int count = thread_count(threads, attending.multiply_adds());
  float* const to = result.mutable_data();
  Offender in_q, in_k, in_v;
  if (queries.tokens > 0) {
    const py::gil_scoped_release no_gil;
    Scratch counting;
    attending.run(kernels, place(int8, keys.heads, slots, keys.stride(), counting), count, to, in_q, counting);
    Scratch scratch(thread_memory(counting.used()));
    const Stored stored = place(int8, keys.heads, slots, keys.stride(), scratch);
    std::vector<std::pair<const Sequence*, int>> blocks;
    for (const Sequence& s : sequences) {
      for (int begin = 0; begin < s.keys; begin += kStoredRows) blocks.emplace_back(&s, begin);
      clear_unused(stored, keys.heads, keys.stride(), s);
    }
    parallel(count, static_cast<int64_t>(blocks.size()), [&](int64_t index, int) {
      const auto& [s, begin] = blocks[static_cast<size_t>(index)];
      const int rows = std::min(kStoredRows, s->keys - begin);
      const int64_t row = s->first_key + begin * s->step;
      note_not_finite(keys, row, rows, in_k, s->step);
      note_not_finite(values, row, rows, in_v, s->step);
      store_keys(kernels, stored, keys, values, row, s->slot + static_cast<size_t>(begin), rows, s->step);
    });
    attending.run(kernels, stored, count, to, in_q, scratch);
  }
  in_q.check("q");
  in_k.check("k");
  in_v.check("v");
  return result;
}

}  // namespace

void bind_attention_calls(py::module_& m) {
  const auto p = [](const char* name) { return py::arg(name); };
  m.def("attention", &attention, p("q"), p("k"), p("v"), p("left"), p("right"), p("bias"), p("offsets"), p("dtype"),
        p("scale"), p("threads"), p("out"), p("step") = 1, p("globals") = 0, p("block") = 0, p("begins") = py::none(),
        p("blocks") = py::none(), p("softcap") = py::none());
}

}  // namespace pocketformer::bindings
