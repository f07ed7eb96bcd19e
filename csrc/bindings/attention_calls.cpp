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

void note_not_finite(const Heads& x, int64_t begin, int rows, Offender& offender) {
  const int row = first_not_finite(x.data + begin * x.row(), static_cast<size_t>(x.row()), rows);
  if (row < rows) offender.note(begin + row);
}

void store_keys(const KernelTable& kernels, const Stored& stored, const Heads& k, const Heads& v, int64_t row,
                size_t slot, int rows) {
  const float *keys = k.data + row * k.row(), *values = v.data + row * v.row();
  const size_t ld = static_cast<size_t>(k.row());
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
  int kv_head, begin, queries;
};

Attending::Attending(Heads q, int kv_heads, std::vector<Sequence> sequences, Object scale, int64_t left, int64_t right)
    : q_(q), kv_heads_(kv_heads), sequences_(std::move(sequences)) {
  require(q.heads % kv_heads == 0, "q has ", q.heads, " heads; they must be a multiple of those of k and v, ",
          kv_heads);
  const auto bound = [](int64_t n) { return n < 0 || n > kUnlimited ? kUnlimited : static_cast<int>(n); };
  range_ = {bound(left), bound(right)};
  const double factor = scale.is_none() ? 1 / std::sqrt(static_cast<double>(q.head_dim)) : number(scale, "scale");
  require(factor > 0 && factor < 1e30, "scale is ", factor, "; it must be above 0");
  scale_ = static_cast<float>(factor);
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
    const double seen = std::min<double>(s.keys, static_cast<double>(range_.left) + range_.right + 1);
    pairs += s.queries * seen;
  }
  return 2 * pairs * static_cast<double>(q_.row());
}

std::vector<Attending::Part> Attending::parts() const {
  std::vector<Part> all;
  for (const Sequence& s : sequences_) {
    for (int head = 0; head < kv_heads_; ++head) {
      for (int begin = 0; begin < s.queries; begin += kQueryRows)
        all.push_back({&s, head, begin, std::min(kQueryRows, s.queries - begin)});
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
      bias[h * ld_bias + static_cast<size_t>(d + before)] = from[std::clamp(d, -reach_, reach_)];
  }
  parallel(threads, (q_.tokens + kStoredRows - 1) / kStoredRows, [&](int64_t index, int) {
    const int64_t begin = index * kStoredRows;
    const int count = static_cast<int>(std::min<int64_t>(kStoredRows, q_.tokens - begin));
    note_not_finite(q_, begin, count, offender);
    if (!int8) return;
    const size_t at = static_cast<size_t>(begin) * heads;
    kernels.quantize_heads({q_.data + begin * q_.row(), static_cast<size_t>(q_.row()), count, q_.heads, q_.head_dim,
                            q_.stride(), 0, q + at * stride, q_scale + at});
  });
  const std::vector<Part> all = parts();
  const int share = q_.heads / kv_heads_;
  parallel(threads, static_cast<int64_t>(all.size()), [&](int64_t index, int) {
    const Part& part = all[static_cast<size_t>(index)];
    const Sequence& s = *part.sequence;
    const int64_t row = s.first_query + part.begin;
    AttentionArgs args{};
    args.queries = part.queries;
    args.first_position = std::max(0, s.keys - s.queries) + part.begin;
    args.keys = s.keys, args.segment_slot = s.slot;
    args.heads = q_.heads, args.kv_heads = kv_heads_, args.head_dim = q_.head_dim, args.head_stride = q_.stride();
    args.head_begin = part.kv_head * share, args.head_end = args.head_begin + share;
    args.scale = scale_, args.range = range_;
    args.bias = bias, args.ld_bias = ld_bias, args.bias_center = static_cast<int>(before);
    args.out = out + row * q_.row(), args.ldo = static_cast<size_t>(q_.row());
    if (int8) {
      const size_t at = static_cast<size_t>(row) * heads;
      kernels.attention_i8({q + at * stride, q_scale + at, std::get<KeyValuesI8>(stored), args});
    } else {
      kernels.attention_f32(
          {q_.data + row * q_.row(), static_cast<size_t>(q_.row()), std::get<KeyValuesF32>(stored), args});
    }
  });
}

namespace {

// Sequences of one call and the slots that they take.
std::vector<Sequence> sequences_of(Object offsets, const Heads& q, const Heads& k, bool positions, size_t& slots) {
  slots = 0;
  std::vector<Sequence> all;
  const auto add = [&](int64_t query, int64_t queries, int64_t key, int64_t keys) {
    if (queries > 0) all.push_back({query, static_cast<int>(queries), key, static_cast<int>(keys), slots});
    slots += round_up(static_cast<size_t>(keys), kLanes);
  };
  if (offsets.is_none()) {
    require(k.tokens >= 1 || q.tokens == 0, "k has no rows; a query needs a key");
    require(!positions || q.tokens <= k.tokens, "q has ", q.tokens, " rows and k ", k.tokens,
            "; with causal, window or bias the queries are the last of the keys' positions");
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

py::array_t<float> attention(Object q, Object k, Object v, int64_t left, int64_t right, Object bias, Object offsets,
                             const std::string& dtype, Object scale, Object threads, Object out) {
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
  const bool positions = left >= 0 || right >= 0 || !bias.is_none();
  const std::vector<Sequence> sequences = sequences_of(offsets, queries, keys, positions, slots);
  Attending attending(queries, keys.heads, sequences, scale, left, right);
  attending.set_bias(bias);
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
      note_not_finite(keys, s->first_key + begin, rows, in_k);
      note_not_finite(values, s->first_key + begin, rows, in_v);
      store_keys(kernels, stored, keys, values, s->first_key + begin, s->slot + static_cast<size_t>(begin), rows);
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
        p("scale"), p("threads"), p("out"));
}

}  // namespace pocketformer::bindings
