// Bytes become a graph, its tensors and an input. Whatever they say, Program refuses with std::invalid_argument, or
// every session over it refuses the input likewise or gives the same bits, on any ISA, mode and number of threads.
//
// Tensors are heap blocks of exactly their size, and so is the arena (fuzz/CMakeLists.txt wraps mmap): a read or write
// past either is seen. Fresh heap memory is not zero, so what reads memory it never wrote shows as a difference.
#include <fuzzer/FuzzedDataProvider.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/dispatch.h"
#include "runtime/session.h"

using namespace pocketformer;

extern "C" void* __wrap_mmap(void*, size_t bytes, int, int, int, off_t) {
  void* memory = nullptr;
  return posix_memalign(&memory, kAlignment, bytes) == 0 ? memory : MAP_FAILED;
}
extern "C" int __wrap_munmap(void* memory, size_t) {
  std::free(memory);
  return 0;
}

namespace {

constexpr size_t kMaxTensorBytes = 1 << 18, kMaxArenaBytes = 1 << 24;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Mostly a graph that makes sense, so that what runs is deep; now and then one field that does not.
class Decoder {
 public:
  explicit Decoder(FuzzedDataProvider& bytes) : bytes_(bytes) {}

  Graph graph() {
    graph_.vocab_size = size();
    graph_.type_vocab_size = bytes_.ConsumeIntegralInRange<int64_t>(0, 3);
    graph_.max_length = size();
    int8_ = bytes_.ConsumeBool();
    embed();
    for (int ops = bytes_.ConsumeIntegralInRange(0, 14); ops > 0; --ops) operation();
    graph_.output = bytes_.ConsumeIntegralInRange(0, 7) == 0 ? pick().name : values_.back().name;
    return graph_;
  }

  const Tensors& tensors() const { return tensors_; }
  bool odd() const { return odd_; }

 private:
  struct Value {
    std::string name;
    int64_t width;
  };

  // True once in sixteen times, and false when the bytes run out.
  bool wrong() { return bytes_.ConsumeIntegral<uint8_t>() >= 240; }

  int64_t size() {
    constexpr int64_t kOdd[] = {0,   -1,  15,  16,      17,      63,      64,       65,       128,       256,
                                257, 512, 768, 1 << 20, 1 << 24, 1 << 30, 1L << 31, 1L << 32, INT64_MAX, INT64_MIN};
    const int byte = bytes_.ConsumeIntegral<uint8_t>();
    return byte < 232 ? 1 + byte % 116 : kOdd[static_cast<size_t>(byte - 232) % std::size(kOdd)];
  }

  int64_t or_wrong(int64_t right) { return wrong() ? size() : right; }

  std::string word(const char* right) {
    constexpr const char* kWords[] = {"", "none", "gelu", "int8", "fp32", "ids", "mean", "rms", "x"};
    return wrong() ? bytes_.PickValueInArray(kWords) : right;
  }

  Value pick() {
    const size_t last = values_.size() - 1, back = bytes_.ConsumeIntegralInRange<size_t>(0, 15);
    return values_[last - (back < 8 ? 0 : std::min(last, back - 8))];
  }

  std::string define(int64_t width) {
    const std::string name = wrong() && !values_.empty() ? values_[0].name : "v" + std::to_string(values_.size());
    values_.push_back({name, width});
    return name;
  }

  std::string name() {  // parameters are shared now and then
    if (!wrong()) ++names_;
    return "w" + std::to_string(names_);
  }

  int64_t rotation(int64_t k) {
    constexpr int64_t kBlocks[] = {0, 2, 4, 8, 16, 32, 64, 128};
    const int64_t block = bytes_.PickValueInArray(kBlocks);
    return block != 0 && k > 0 && k % block == 0 ? block : or_wrong(0);
  }

  // What the writer of a file would not write is `odd()`: worthless, and perhaps not the same everywhere.
  void tensor(const std::string& name, DType dtype, std::vector<int64_t> shape, bool positive = false) {
    if (wrong()) return;
    if (wrong() && !shape.empty()) shape[bytes_.ConsumeIntegralInRange<size_t>(0, shape.size() - 1)] = size();
    if (wrong()) dtype = bytes_.PickValueInArray({DType::kF32, DType::kI8, DType::kI32, DType::kOther});
    size_t bytes = dtype == DType::kI8 ? 1 : 4;
    for (int64_t& extent : shape) {
      if (extent < 0 || extent > (1 << 20) || bytes * static_cast<size_t>(extent) > kMaxTensorBytes) extent = 1;
      bytes *= static_cast<size_t>(extent);
    }
    if (tensors_.count(name) != 0) return;
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, std::max<size_t>(bytes, 1)) != 0) std::abort();
    memory_.emplace_back(memory);
    fill(static_cast<char*>(memory), bytes, dtype, positive);
    tensors_[name] = {memory, dtype, std::move(shape)};
  }

  void fill(char* memory, size_t bytes, DType dtype, bool positive) {
    const uint8_t seed = bytes_.ConsumeIntegral<uint8_t>();
    if (seed >= 250) {
      odd_ = true;
      std::memset(memory, seed % 2 ? 0xFF : 0x80, bytes);
      return;
    }
    uint32_t state = seed + 1u;
    for (size_t i = 0; i < bytes; i += dtype == DType::kI8 ? 1 : 4) {
      const int32_t value = static_cast<int32_t>(((state = state * 1664525u + 1013904223u) >> 16) % 255) - 127;
      const float real = static_cast<float>(positive ? std::abs(value) : value) / (positive ? 1 << 14 : 1 << 9);
      if (dtype == DType::kI8) {
        memory[i] = static_cast<char>(value);
      } else if (dtype == DType::kF32) {
        std::memcpy(memory + i, &real, 4);
      } else {
        std::memcpy(memory + i, &value, 4);
      }
    }
  }

  // The true sums of a weight's channels, if it is one.
  void colsum(const std::string& name) {
    const auto found = tensors_.find(name + ".weight");
    if (found == tensors_.end() || found->second.dtype != DType::kI8 || found->second.shape.size() != 4) {
      return tensor(name + ".colsum", DType::kI32, {16});
    }
    const std::vector<int64_t>& shape = found->second.shape;
    tensor(name + ".colsum", DType::kI32, {shape[0] * shape[2]});
    const auto sums = tensors_.find(name + ".colsum");
    if (sums == tensors_.end() || sums->second.dtype != DType::kI32 || sums->second.shape[0] != shape[0] * shape[2]) {
      return;
    }
    auto* to = static_cast<int32_t*>(const_cast<void*>(sums->second.data));
    if (wrong()) {
      odd_ = true;
      return;
    }
    const auto* from = static_cast<const int8_t*>(found->second.data);
    std::fill_n(to, shape[0] * shape[2], 0);
    for (int64_t p = 0; p < shape[0]; ++p) {
      for (int64_t i = 0; i < shape[1] * shape[2] * shape[3]; ++i)
        to[p * shape[2] + i / shape[3] % shape[2]] += *from++;
    }
  }

  static int64_t up(int64_t value, int64_t multiple) {
    return value < 0 || value > (1 << 30) ? 0 : (value + multiple - 1) / multiple * multiple;
  }

  void weight(const std::string& name, bool int8, int64_t n, int64_t k) {
    if (int8) {
      tensor(name + ".weight", DType::kI8, {up(n, 16) / 16, up(k, 4) / 4, 16, 4});
      tensor(name + ".scale", DType::kF32, {up(n, 16)}, true);
      colsum(name);
    } else {
      tensor(name + ".weight", DType::kF32, {up(n, 16) / 16, k, 16});
    }
  }

  void embed() {
    EmbedSpec op{"", size(), {}};
    constexpr const char* kIndices[] = {"ids", "positions", "types"};
    for (int tables = bytes_.ConsumeIntegralInRange(0, 3), i = 0; i < tables; ++i) {
      const int index = wrong() ? bytes_.ConsumeIntegralInRange(0, 2) : i;
      const int64_t offset = index == 1 ? bytes_.ConsumeIntegralInRange<int64_t>(0, 4) : or_wrong(0);
      const int64_t reach[] = {graph_.vocab_size, graph_.max_length, graph_.type_vocab_size};
      const int64_t rows =
          or_wrong(std::clamp<int64_t>(reach[index], -1, 1 << 30) + std::clamp<int64_t>(offset, -1, 8));
      const std::string weights = name();
      const bool panels = i == 0 && bytes_.ConsumeBool();
      op.tables.push_back({weights, word(kIndices[index]), rows, offset, panels ? rotation(op.width) : or_wrong(0)});
      if (panels) {
        weight(weights, int8_, rows, op.width);
      } else {
        tensor(weights + ".weight", int8_ ? DType::kI8 : DType::kF32, {rows, op.width});
        if (int8_) tensor(weights + ".scale", DType::kF32, {up(rows, 16)}, true);
      }
    }
    op.out = define(op.width);
    graph_.ops.emplace_back(op);
  }

  void operation() {
    const Value in = pick();
    switch (bytes_.ConsumeIntegralInRange(0, 9)) {
      case 0:
        return embed();
      case 1:
        return norm(in);
      case 2:
      case 3:
      case 4:
        return linear(in);
      case 5:
      case 6:
        return attention(in);
      case 7:
        graph_.ops.emplace_back(
            PoolSpec{in.name, define(in.width), word(bytes_.PickValueInArray({"mean", "cls", "max"}))});
        return;
      case 8:
        graph_.ops.emplace_back(SelectSpec{in.name, define(in.width)});
        return;
      default:
        graph_.ops.emplace_back(NormalizeSpec{in.name, define(in.width)});
    }
  }

  void norm(const Value& in) {
    NormSpec op{in.name, "", name(), word(bytes_.PickValueInArray({"layer", "rms"})), or_wrong(in.width), 1e-6};
    if (wrong()) op.eps = bytes_.ConsumeFloatingPoint<double>();
    tensor(op.weight + ".weight", DType::kF32, {up(op.width, 16)});
    if (bytes_.ConsumeBool()) tensor(op.weight + ".bias", DType::kF32, {up(op.width, 16)});
    op.out = define(op.width);
    graph_.ops.emplace_back(op);
  }

  void linear(const Value& in) {
    const char* activation = bytes_.PickValueInArray({"none", "gelu", "gelu_tanh", "relu", "silu", "tanh"});
    LinearSpec op{in.name, "", name(), word(activation), "", size(), or_wrong(in.width), 0};
    if (bytes_.ConsumeBool()) {
      const Value residual = pick();
      op.residual = residual.name;
      op.n = or_wrong(residual.width);
    }
    const bool int8 = wrong() != int8_;
    if (int8) op.rotate = rotation(op.k);
    weight(op.weight, int8, op.n, op.k);
    if (bytes_.ConsumeBool()) tensor(op.weight + ".bias", DType::kF32, {up(op.n, 16)});
    op.out = define(op.n);
    graph_.ops.emplace_back(op);
  }

  // With the projection that it needs.
  void attention(const Value& in) {
    AttentionSpec op{in.name, "", word(int8_ ? "int8" : "fp32"), "", 0, 0, 0, -1, -1, 0.25, bytes_.ConsumeBool()};
    op.kv_heads = bytes_.ConsumeIntegralInRange<int64_t>(1, 3);
    op.heads = or_wrong(op.kv_heads * bytes_.ConsumeIntegralInRange<int64_t>(1, 3));
    op.head_dim = bytes_.ConsumeBool() ? size() : bytes_.ConsumeIntegralInRange<int64_t>(1, 40);
    if (bytes_.ConsumeBool()) op.left = size();
    if (bytes_.ConsumeBool()) op.right = size();
    if (wrong()) {
      op.scale = bytes_.ConsumeFloatingPoint<double>();
      odd_ = true;  // logits beyond 2^31 have no exact difference to their maximum
    }
    if (op.head_dim > 0 && op.head_dim <= 300 && op.heads > 0 && op.heads <= 64 && !wrong()) {
      LinearSpec qkv{in.name, "", name(), "none", "", (op.heads + 2 * op.kv_heads) * op.head_dim, in.width, 0};
      weight(qkv.weight, int8_, qkv.n, qkv.k);
      op.in = qkv.out = define(qkv.n);
      graph_.ops.emplace_back(qkv);
    }
    if (bytes_.ConsumeBool()) {
      op.bias = name();
      const int64_t length = graph_.max_length > 0 && graph_.max_length < (1 << 20) ? 2 * graph_.max_length - 1 : 1;
      tensor(op.bias, DType::kF32, {op.heads, up(length, 16)});
    }
    const bool sane = op.head_dim > 0 && op.head_dim <= 4096 && op.heads > 0 && op.heads <= 4096;
    op.out = define(sane ? op.heads * op.head_dim : 1);
    graph_.ops.emplace_back(op);
  }

  FuzzedDataProvider& bytes_;
  Graph graph_;
  Tensors tensors_;
  std::vector<std::unique_ptr<void, Free>> memory_;
  std::vector<Value> values_;
  bool int8_ = false, odd_ = false;
  int names_ = 0;
};

struct Batch {
  std::vector<int32_t> ids, types;
  std::vector<int64_t> offsets{0}, rows;
  Input input{};
};

Batch batch(FuzzedDataProvider& bytes, const Program& program) {
  Batch b;
  const auto in_range = [&](int64_t limit) {
    const int64_t value = bytes.ConsumeIntegral<uint8_t>();
    return value == 255 ? limit : value % std::max<int64_t>(limit, 1);  // 255: one too far
  };
  for (int sequences = bytes.ConsumeIntegralInRange(0, 5); sequences > 0; --sequences) {
    b.offsets.push_back(b.offsets.back() + in_range(std::min(program.max_length + 1, 150)));
  }
  b.ids.resize(static_cast<size_t>(b.offsets.back()));
  for (int32_t& id : b.ids) id = static_cast<int32_t>(in_range(program.vocab_size));
  if (bytes.ConsumeBool()) {
    b.types.resize(b.ids.size());
    for (int32_t& type : b.types) type = static_cast<int32_t>(in_range(program.type_vocab_size));
  }
  b.rows.resize(bytes.ConsumeIntegralInRange<size_t>(0, 6));
  for (int64_t& row : b.rows) row = in_range(static_cast<int64_t>(b.ids.size()));
  if (bytes.ConsumeIntegralInRange(0, 15) == 15) b.offsets.back() += bytes.ConsumeIntegral<int8_t>();
  const bool selects = program.selects != (bytes.ConsumeIntegralInRange(0, 15) == 15);
  const int64_t none = 0;
  b.input = {b.ids.data(),
             b.types.empty() ? nullptr : b.types.data(),
             b.offsets.data(),
             nullptr,
             b.ids.size(),
             b.offsets.size() - 1,
             selects ? b.rows.size() : 0};
  if (selects) b.input.rows = b.rows.empty() ? &none : b.rows.data();
  if (selects && b.rows.empty()) b.input.rows = b.offsets.data();
  return b;
}

// Empty when the input was refused.
std::vector<float> run(const std::shared_ptr<const Program>& program, const Input& input, Tuning tuning, int threads) {
  Session session(program, tuning);
  const size_t width = static_cast<size_t>(program->buffers[static_cast<size_t>(program->output)].width);
  std::vector<float> out(session.output_rows(input) * width, 7.0f);
  try {
    session.run(input, threads, out.data());
  } catch (const std::invalid_argument&) {
    return {};
  }
  return out;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

void describe(const Graph& graph, const Program& program) {
  constexpr const char* kKinds[] = {"embed", "norm", "linear", "attention", "pool", "select", "normalize"};
  for (const OpSpec& op : graph.ops) {
    std::visit([&](const auto& o) { std::fprintf(stderr, "%s = %s", o.out.c_str(), kKinds[op.index()]); }, op);
    if (const auto* o = std::get_if<LinearSpec>(&op)) {
      std::fprintf(stderr, " %s n %ld k %ld %s residual '%s' rotate %ld", o->in.c_str(), o->n, o->k,
                   o->activation.c_str(), o->residual.c_str(), o->rotate);
    } else if (const auto* o = std::get_if<AttentionSpec>(&op)) {
      std::fprintf(stderr, " %s %s heads %ld / %ld head_dim %ld scale %g left %ld right %ld causal %d bias '%s'",
                   o->in.c_str(), o->dtype.c_str(), o->heads, o->kv_heads, o->head_dim, o->scale, o->left, o->right,
                   o->causal, o->bias.c_str());
    } else if (const auto* o = std::get_if<NormSpec>(&op)) {
      std::fprintf(stderr, " %s %s width %ld eps %g", o->in.c_str(), o->kind.c_str(), o->width, o->eps);
    } else if (const auto* o = std::get_if<PoolSpec>(&op)) {
      std::fprintf(stderr, " %s %s", o->in.c_str(), o->kind.c_str());
    }
    std::fprintf(stderr, "\n");
  }
  std::fprintf(stderr, "output %s, %zu stages\n", graph.output.c_str(), program.stages.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzedDataProvider bytes(data, size);
  Decoder decoder(bytes);
  const Graph graph = decoder.graph();
  std::shared_ptr<const Program> program, scalar;
  try {
    program = std::make_shared<const Program>(graph, decoder.tensors(), kernels());
    scalar = std::make_shared<const Program>(graph, decoder.tensors(), kernels("scalar"));
  } catch (const std::invalid_argument&) {
    return 0;
  }
  const Batch b = batch(bytes, *program);
  const int threads = bytes.ConsumeIntegralInRange(1, 3), block = bytes.ConsumeIntegralInRange(0, 20);
  try {
    std::vector<int64_t> lengths;
    for (size_t s = 0; s < b.input.sequences; ++s) lengths.push_back(b.offsets[s + 1] - b.offsets[s]);
    const Load load = measure(*program, lengths.data(), lengths.size(), b.input.rows_count);
    if (make_plan(*program, load, threads, {}).bytes > kMaxArenaBytes) return 0;
  } catch (const std::invalid_argument&) {  // run() refuses it too
  }
  const std::vector<float> expected = run(program, b.input, {}, 1);
  const bool finite = std::all_of(expected.begin(), expected.end(), [](float x) { return std::isfinite(x); });
  const std::pair<const char*, std::vector<float>> others[] = {
      {"rows", run(program, b.input, {Mode::kRows, block}, threads)},
      {"columns", run(program, b.input, {Mode::kColumns, 0}, threads)},
      {"the scalar ISA", run(scalar, b.input, {}, 1)}};
  for (const auto& [name, other] : others) {
    if (same(expected, other) || !finite || decoder.odd()) continue;  // the bits of a NaN are nobody's promise
    std::fprintf(stderr, "%s, %d threads: another result than one thread's\n", name, threads);
    describe(graph, *program);
    std::abort();
  }
  return 0;
}
