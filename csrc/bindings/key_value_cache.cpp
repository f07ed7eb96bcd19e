// One layer's keys and values of one sequence, rounded as they arrive.
#include <cstring>
#include <memory>

#include "bindings/attention_calls.h"
#include "bindings/bindings.h"

namespace pocketformer::bindings {
namespace {

class KeyValueCache {
 public:
  KeyValueCache(const KernelTable& kernels, int kv_heads, int head_dim, int capacity)
      : kernels_(kernels), kv_heads_(kv_heads), head_dim_(head_dim), capacity_(capacity) {
    memory_.reserve(place(nullptr));
    place(memory_.data());
  }

  void append(Object k, Object v) {
    const Turn turn(*this);
    const auto k_array = checked_array<float>(k, "k"), v_array = checked_array<float>(v, "v");
    const Heads keys = heads_of(k_array, "k"), values = heads_of(v_array, "v");
    require(keys.heads == kv_heads_ && keys.head_dim == head_dim_, "k is ", describe(k), "; it must have shape (tokens, ",
            kv_heads_, ", ", head_dim_, ")");
    require(shape_of(k_array) == shape_of(v_array), "v is ", describe(v), "; it must have the shape of k, ",
            shape_text(shape_of(k_array)));
    require(keys.tokens <= capacity_ - length_, "k has ", keys.tokens, " tokens; the cache holds ", length_, " of ",
            capacity_, ": make a larger one, or truncate it");
    const int rows = static_cast<int>(keys.tokens);
    Offender in_k, in_v;
    note_not_finite(keys, 0, rows, in_k);
    note_not_finite(values, 0, rows, in_v);
    in_k.check("k");
    in_v.check("v");
    {
      const py::gil_scoped_release no_gil;
      store_keys(kernels_, stored_, keys, values, 0, static_cast<size_t>(length_), rows);
    }
    length_ += rows;
  }

  py::array_t<float> attend(Object q, int64_t left, int64_t right, Object bias, Object scale, Object threads,
                            Object out) {
    const Turn turn(*this);
    const auto array = checked_array<float>(q, "q");
    const Heads queries = heads_of(array, "q");
    require(queries.head_dim == head_dim_, "q is ", describe(q), "; its head_dim must be the cache's, ", head_dim_);
    require(queries.tokens <= length_, "q has ", queries.tokens, " rows; they are the queries of the last tokens, and the "
            "cache holds ", length_, ": append theirs first");
    auto result = result_array<float>(out, shape_of(array));
    if (!out.is_none()) require_apart(array, "q", result);
    const std::vector<Sequence> sequences = {{0, static_cast<int>(queries.tokens), 0, length_, 0}};
    Attending attending(queries, kv_heads_, sequences, scale, left, right);
    attending.set_bias(bias);
    const int count = thread_count(threads, attending.multiply_adds());
    float* const to = result.mutable_data();
    Offender in_q;
    if (queries.tokens > 0) {
      const py::gil_scoped_release no_gil;
      Scratch counting;
      attending.run(kernels_, stored_, count, to, in_q, counting);
      Scratch scratch(thread_memory(counting.used()));
      attending.run(kernels_, stored_, count, to, in_q, scratch);
    }
    in_q.check("q");
    return result;
  }

  void truncate(int64_t length) {
    const Turn turn(*this);
    require(length >= 0 && length <= length_, "length is ", length, "; it must be 0 to what the cache holds, ", length_);
    length_ = static_cast<int>(length);
  }

  std::unique_ptr<KeyValueCache> fork() {
    const Turn turn(*this);
    auto copy = std::make_unique<KeyValueCache>(kernels_, kv_heads_, head_dim_, capacity_);
    copy->length_ = length_;
    const KeyValuesI8 &from = std::get<KeyValuesI8>(stored_), &to = std::get<KeyValuesI8>(copy->stored_);
    const size_t rows = round_up(static_cast<size_t>(length_), 4), bytes = rows * stride();
    for (size_t h = 0; h < static_cast<size_t>(kv_heads_); ++h) {  // untouched pages stay so
      const size_t first = h * from.capacity;
      std::memcpy(to.k + first * stride(), from.k + first * stride(), bytes);
      std::memcpy(to.v + first * stride(), from.v + first * stride(), bytes);
      std::memcpy(to.k_scale + first, from.k_scale + first, rows * sizeof(float));
      std::memcpy(to.v_scale + first, from.v_scale + first, rows * sizeof(float));
    }
    return copy;
  }

  int length() const { return length_; }
  int capacity() const { return capacity_; }
  size_t bytes() const { return memory_.size(); }
  const char* isa() const { return kernels_.isa; }

 private:
  // One call at a time: a second thread's would meet keys that are half written.
  class Turn {
   public:
    explicit Turn(KeyValueCache& cache) : taken_(cache.taken_) {
      const uint32_t mine = ThreadPool::instance().generation();  // a child's: what its parent held is free there
      if (taken_.exchange(mine, std::memory_order_acquire) == mine)
        throw std::runtime_error("another thread is using this cache; give every thread one of its own, by fork()");
    }
    ~Turn() { taken_.store(0, std::memory_order_release); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    std::atomic<uint32_t>& taken_;
  };

  size_t stride() const { return round_up(static_cast<size_t>(head_dim_), kLanes); }

  size_t place(std::byte* memory) {
    Scratch pieces(memory);
    KeyValuesI8 kv{};
    kv.capacity = round_up(static_cast<size_t>(capacity_), kLanes);
    const size_t rows = static_cast<size_t>(kv_heads_) * kv.capacity, elements = rows * stride();
    kv.k = pieces.take<uint8_t>(elements), kv.k_scale = pieces.take<float>(rows);
    kv.v = pieces.take<int8_t>(elements), kv.v_scale = pieces.take<float>(rows);
    stored_ = kv;
    return pieces.used();
  }

  const KernelTable& kernels_;
  const int kv_heads_, head_dim_, capacity_;
  int length_ = 0;
  std::atomic<uint32_t> taken_{0};
  AlignedBuffer memory_;
  Stored stored_;
};

std::unique_ptr<KeyValueCache> make_cache(int64_t kv_heads, int64_t head_dim, int64_t capacity) {
  const auto check = [](const char* name, int64_t value, int64_t most) {
    require(value >= 1 && value <= most, name, " is ", value, "; it must be 1 to ", most);
    return static_cast<int>(value);
  };
  return std::make_unique<KeyValueCache>(current_kernels(), check("kv_heads", kv_heads, 1024),
                                         check("head_dim", head_dim, kMaxHeadDim),
                                         check("capacity", capacity, kMostWidth));
}

}  // namespace

void bind_key_value_cache(py::module_& m) {
  const auto p = [](const char* name) { return py::arg(name); };
  py::class_<KeyValueCache>(m, "KeyValueCache")
      .def(py::init(&make_cache), p("kv_heads"), p("head_dim"), p("capacity"))
      .def("append", &KeyValueCache::append, p("k"), p("v"))
      .def("attend", &KeyValueCache::attend, p("q"), p("left"), p("right"), p("bias"), p("scale"), p("threads"), p("out"))
      .def("truncate", &KeyValueCache::truncate, p("length"))
      .def("fork", &KeyValueCache::fork)
      .def_property_readonly("length", &KeyValueCache::length)
      .def_property_readonly("capacity", &KeyValueCache::capacity)
      .def_property_readonly("nbytes", &KeyValueCache::bytes)
      .def_property_readonly("isa", &KeyValueCache::isa);
}

}  // namespace pocketformer::bindings
