// Operators become steps. This is the last line of defence: the kernels trust what leaves this file.
#include <algorithm>
#include <unordered_map>

#include "core/errors.h"
#include "runtime/operands.h"
#include "runtime/program.h"

namespace pocketformer {
namespace {

constexpr int64_t kMaxOps = 1 << 14;
constexpr int64_t kMaxWidth = 1 << 20;
constexpr int64_t kMaxRows = 1 << 30;
// 255 · 128 · K must fit int32, whatever the bytes of a file are: activations are offset to at most 255 on some ISAs,
// and a file runs on all or none.
constexpr int64_t kMaxInt8K = INT32_MAX / (255 * 128);

int64_t panels(int64_t channels) { return (channels + kLanes - 1) / kLanes; }
int64_t padded(int64_t channels) { return panels(channels) * kLanes; }

constexpr std::pair<const char*, Activation> kActivations[] = {
    {"none", Activation::kNone}, {"gelu", Activation::kGelu}, {"gelu_tanh", Activation::kGeluTanh},
    {"relu", Activation::kRelu}, {"silu", Activation::kSilu}, {"tanh", Activation::kTanh}};
constexpr std::pair<const char*, NormKind> kNorms[] = {{"layer", NormKind::kLayer}, {"rms", NormKind::kRms}};
constexpr std::pair<const char*, PoolKind> kPools[] = {
    {"mean", PoolKind::kMean}, {"cls", PoolKind::kCls}, {"max", PoolKind::kMax}};
constexpr std::pair<const char*, Index> kIndices[] = {
    {"ids", Index::kIds}, {"positions", Index::kPositions}, {"types", Index::kTypes}};
constexpr std::pair<const char*, bool> kAttentionTypes[] = {{"int8", true}, {"fp32", false}};

class Lowering : Operands {
 public:
  Lowering(Program& program, const Graph& graph, const Tensors& tensors)
      : Operands(tensors), program_(program), graph_(graph) {}

  void run() {
    const auto bounded = [](const char* name, int64_t value, int64_t low) {
      require(value >= low && value <= kMaxRows, "graph: ", name, " is ", value, "; it must be ", low, " to ",
              kMaxRows);
      return static_cast<int>(value);
    };
    program_.vocab_size = bounded("vocab_size", graph_.vocab_size, 1);
    program_.type_vocab_size = bounded("type_vocab_size", graph_.type_vocab_size, 0);
    program_.max_length = bounded("max_length", graph_.max_length, 1);
    require(!graph_.ops.empty() && graph_.ops.size() <= kMaxOps, "graph: ops has ", graph_.ops.size(),
            " entries; it must have 1 to ", kMaxOps);
    for (size_t i = 0; i < graph_.ops.size(); ++i) {
      std::visit(
          [&](const auto& op) {
            set_where(concat("op ", i, " ('", op.out, "')"));
            lower(op);
          },
          graph_.ops[i]);
    }
    set_where("graph");
    program_.output = value(graph_.output, "output");
    enter(buffer(program_.output).domain);
    emit(OutputStep{read(program_.output)});
    place_attention(program_);
    place_buffers(program_, lifetimes_, in_place_);
    weigh_stages(program_);
  }

 private:
  // --- values and steps ----------------------------------------------------------------------------------------------

  Buffer& buffer(int index) { return program_.buffers[static_cast<size_t>(index)]; }

  int value(const std::string& name, const char* field) {
    const auto found = values_.find(name);
    check(found != values_.end(), field, " names the value '", name, "', which no earlier operator writes");
    return found->second;
  }

  int value(const std::string& name, const char* field, Domain domain) {
    const int found = value(name, field);
    check(buffer(found).domain == domain, field, " names the value '", name, "' of another domain");
    return found;
  }

  // Steps are numbered as they are emitted; a buffer is defined by the next step.
  int define(Domain domain, int width, int ld, size_t element_bytes) {
    const int stage = static_cast<int>(program_.stages.size()) - 1;
    program_.buffers.push_back({domain, width, ld, static_cast<size_t>(ld) * element_bytes});
    lifetimes_.push_back({steps_, steps_, stage, stage});
    in_place_.push_back(kNone);
    return static_cast<int>(program_.buffers.size()) - 1;
  }

  int write(const std::string& name, Domain domain, int64_t width, int overwrites = kNone) {
    check(!name.empty() && values_.count(name) == 0, "out is '", name, "'; it must be a new, non-empty name");
    const int out = define(domain, static_cast<int>(width), static_cast<int>(padded(width)), sizeof(float));
    in_place_.back() = overwrites;
    values_[name] = out;
    return out;
  }

  int read(int index) {
    if (index == kNone) return index;
    Lifetime& life = lifetimes_[static_cast<size_t>(index)];
    life.last_used = steps_;
    life.last_stage = static_cast<int>(program_.stages.size()) - 1;
    return index;
  }

  void emit(Step step) {
    program_.stages.back().steps.push_back(std::move(step));
    ++steps_;
  }

  void begin_stage(Domain domain) {
    program_.stages.push_back({domain, {}});
    quantized_.clear();
  }

  void enter(Domain domain) {
    if (program_.stages.empty() || program_.stages.back().domain != domain) begin_stage(domain);
  }

  // --- operators -----------------------------------------------------------------------------------------------------

  void lower(const EmbedSpec& op) {
    enter(Domain::kTokens);
    const int64_t width = extent("width", op.width, 1, kMaxWidth);
    check(!op.tables.empty() && op.tables.size() <= 64, "tables has ", op.tables.size(),
          " entries; it must have 1 to 64");
    EmbedStep step;
    for (const TableSpec& table : op.tables) step.lookups.push_back(lookup(table, width, step.lookups.empty()));
    step.index = define(Domain::kTokens, 1, 1, sizeof(int32_t));
    step.out = write(op.out, Domain::kTokens, width);
    emit(std::move(step));
  }

  Lookup lookup(const TableSpec& table, int64_t width, bool first) {
    const Index index = choose("index", table.index, kIndices);
    const int64_t rows = extent("rows", table.rows, 1, kMaxRows), offset = extent("offset", table.offset, 0, kMaxRows);
    const int64_t reach = index == Index::kIds         ? program_.vocab_size
                          : index == Index::kPositions ? program_.max_length + offset
                                                       : program_.type_vocab_size;
    check(index == Index::kPositions || offset == 0, "table '", table.weight, "' has offset ", offset,
          "; only a table of positions has one");
    check(reach >= 1 && reach <= rows, "table '", table.weight, "' has ", rows, " rows; its index reaches ", reach);
    check(first || table.rotate == 0, "table '", table.weight, "' has rotate ", table.rotate,
          "; only the first may rotate");
    const std::string name = table.weight + ".weight";
    const Tensor& weight = tensor(name);
    Lookup lookup{
        nullptr, nullptr, weight.shape.size() != 2, index, static_cast<int>(offset), rotation(table.rotate, width)};
    if (weight.dtype == DType::kI8) lookup.scale = required<float>(table.weight + ".scale", {padded(rows)});
    std::vector<int64_t> shape;
    if (lookup.panels) {
      shape = weight.dtype == DType::kI8 ? int8_panels(rows, width) : fp32_panels(rows, width);
    } else {  // by rows, padded to a multiple of 64 bytes
      check(weight.shape[0] >= rows, "tensor '", name, "' has ", weight.shape[0], " rows; the table has ", rows);
      shape = {weight.shape[0], width};
    }
    if (weight.dtype == DType::kI8) {
      lookup.table = data<int8_t>(name, weight, shape);
    } else {
      lookup.table = data<float>(name, weight, shape);
    }
    return lookup;
  }

  static std::vector<int64_t> int8_panels(int64_t n, int64_t k) { return {panels(n), (k + 3) / 4, kLanes, 4}; }
  static std::vector<int64_t> fp32_panels(int64_t n, int64_t k) { return {panels(n), k, kLanes}; }

  void lower(const NormSpec& op) {
    const int in = value(op.in, "in");
    const int64_t width = extent("width", op.width, 1, kMaxWidth);
    check_width(in, width);
    check(op.eps >= 0, "eps is ", op.eps, "; it must not be negative");
    enter(buffer(in).domain);
    NormStep step{};
    step.kind = choose("kind", op.kind, kNorms);
    step.eps = finite("eps", op.eps);
    step.weight = required<float>(op.weight + ".weight", {padded(width)});
    step.bias = optional<float>(op.weight + ".bias", {padded(width)});
    step.out = write(op.out, buffer(in).domain, width, in);
    step.in = read(in);
    emit(step);
  }

  void check_width(int in, int64_t width) {
    check(buffer(in).width == width, "in has ", buffer(in).width, " columns; the operator takes ", width);
  }

  void lower(const LinearSpec& op) {
    const int in = value(op.in, "in");
    const Domain domain = buffer(in).domain;
    const int residual = op.residual.empty() ? kNone : value(op.residual, "residual", domain);
    const int64_t n = extent("n", op.n, 1, kMaxWidth), k = extent("k", op.k, 1, kMaxWidth);
    check_width(in, k);
    check(residual == kNone || buffer(residual).width == n, "residual '", op.residual, "' must have ", n, " columns");
    const Activation activation = choose("activation", op.activation, kActivations);
    const int rotate = rotation(op.rotate, k);
    const float* bias = optional<float>(op.weight + ".bias", {padded(n)});
    const std::string name = op.weight + ".weight";
    const Tensor& weight = tensor(name);
    enter(domain);
    if (weight.dtype == DType::kI8) {
      check(k <= kMaxInt8K, "k is ", k, "; int8 products are exact only up to ", kMaxInt8K);
      LinearI8Step step{};
      step.weight = data<int8_t>(name, weight, int8_panels(n, k));
      step.scale = required<float>(op.weight + ".scale", {padded(n)});
      step.colsum = required<int32_t>(op.weight + ".colsum", {padded(n)});
      const QuantizeStep quantized = quantize(in, rotate);
      step.q = read(quantized.q);
      step.q_scale = read(quantized.scale);
      finish(step, op, bias, activation, domain, residual, residual);
    } else {
      check(rotate == 0, "rotate is ", rotate, "; an fp32 product takes unrotated rows");
      LinearF32Step step{};
      step.weight = data<float>(name, weight, fp32_panels(n, k));
      step.in = read(in);
      finish(step, op, bias, activation, domain, residual, residual == in ? kNone : residual);
    }
  }

  template <typename Linear>
  void finish(Linear& step, const LinearSpec& op, const float* bias, Activation activation, Domain domain, int residual,
              int overwrites) {
    step.bias = bias;
    step.activation = activation;
    step.k = static_cast<int>(op.k);
    step.panels = static_cast<int>(panels(op.n));
    // With an activation the product is stored before the residual is read.
    step.out = write(op.out, domain, op.n, activation == Activation::kNone ? overwrites : kNone);
    step.residual = read(residual);
    emit(step);
  }

  // Once for all linears of a stage that share the input and its rotation.
  QuantizeStep quantize(int in, int rotate) {
    for (const QuantizeStep& known : quantized_) {
      if (known.in == in && known.rotate == rotate) return known;
    }
    const Domain domain = buffer(in).domain;
    const int k = buffer(in).width, ld = static_cast<int>(round_up(static_cast<size_t>(k), kAlignment));
    QuantizeStep step{};
    step.q = define(domain, k, ld, 1);
    step.scale = define(domain, 1, 1, sizeof(float));
    step.in = read(in);
    step.rotate = rotate;
    emit(step);
    quantized_.push_back(step);
    return step;
  }

  void lower(const AttentionSpec& op) {
    const int in = value(op.in, "in", Domain::kTokens);
    AttentionShape shape{};
    shape.heads = extent("heads", op.heads, 1, kMaxWidth);
    shape.kv_heads = extent("kv_heads", op.kv_heads, 1, shape.heads);
    shape.head_dim = extent("head_dim", op.head_dim, 1, kMaxHeadDim);
    shape.head_stride = static_cast<int>(padded(shape.head_dim));
    shape.int8 = choose("dtype", op.dtype, kAttentionTypes);
    check(shape.heads % shape.kv_heads == 0, "heads is ", shape.heads, "; it must be a multiple of kv_heads (",
          shape.kv_heads, ")");
    check_width(in, (op.heads + 2 * op.kv_heads) * op.head_dim);
    extent("left", op.left, -1, kMaxRows);
    extent("right", op.right, -1, kMaxRows);
    AttendStep attend{};
    attend.scale = finite("scale", op.scale);
    check(attend.scale > 0, "scale is ", op.scale, "; it must be above 0");
    attend.range.left = op.left < 0 ? kUnlimited : static_cast<int>(op.left);
    attend.range.right = op.causal ? 0 : op.right < 0 ? kUnlimited : static_cast<int>(op.right);
    if (!op.bias.empty()) {
      const int64_t length = padded(2 * static_cast<int64_t>(program_.max_length) - 1);
      attend.bias = required<float>(op.bias, {op.heads, length});
      attend.ld_bias = static_cast<size_t>(length);
      attend.bias_center = program_.max_length - 1;
    }
    enter(Domain::kTokens);
    attend.shape = shape;
    emit(StoreStep{read(in), shape});
    begin_stage(Domain::kTokens);
    attend.out = write(op.out, Domain::kTokens, op.heads * op.head_dim);
    emit(attend);
  }

  void lower(const PoolSpec& op) {
    const int in = value(op.in, "in", Domain::kTokens);
    enter(Domain::kSequences);
    PoolStep step{};
    step.kind = choose("kind", op.kind, kPools);
    step.out = write(op.out, Domain::kSequences, buffer(in).width);
    step.in = read(in);
    emit(step);
  }

  void lower(const SelectSpec& op) {
    const int in = value(op.in, "in", Domain::kTokens);
    enter(Domain::kRows);
    program_.selects = true;
    const int out = write(op.out, Domain::kRows, buffer(in).width);
    emit(SelectStep{read(in), out});
  }

  void lower(const NormalizeSpec& op) {
    const int in = value(op.in, "in");
    const Domain domain = buffer(in).domain;
    enter(domain);
    const int out = write(op.out, domain, buffer(in).width, in);
    emit(NormalizeStep{read(in), out});
  }

  Program& program_;
  const Graph& graph_;
  std::unordered_map<std::string, int> values_;
  std::vector<Lifetime> lifetimes_;
  std::vector<int> in_place_;
  std::vector<QuantizeStep> quantized_;  // in the current stage
  int steps_ = 0;
};

}  // namespace

Program::Program(const Graph& graph, const Tensors& tensors, const KernelTable& table) : kernels(&table) {
  Lowering(*this, graph, tensors).run();
}

}  // namespace pocketformer
