// One layer's keys and values of one sequence, rounded as they arrive.
//
// With a window the cache holds what later queries can still see, in memory that does not grow:
//
//     position   0 … base │ base …              length │ …
//     slot       dropped  │ 0 …        length − base   │ free … slots
//
// When no slot is free, what is still in the window moves to the front. `base` is a multiple of kKeySplit: the tiles
// and splits of the softmax, which count from the start of the sequence, lie as they would in a cache that drops
// nothing, and so the bits are the same.
#include <cstring>
#include <memory>

#include "bindings/attention_calls.h"
#include "bindings/bindings.h"

namespace pocketformer::bindings {
namespace {

class KeyValueCache {
 public:
  KeyValueCache(const KernelTable& kernels, int kv_heads, int head_dim, int capacity, int window)
      : kernels_(kernels), kv_heads_(kv_heads), head_dim_(head_dim), capacity_(capacity), window_(window) {
    memory_.reserve(place(nullptr));
    place(memory_.data());
  }

  void append(Object k, Object v) {
    const Turn turn(*this);
    const auto k_array = checked_array<float>(k, "k"), v_array = checked_array<float>(v, "v");
    const Heads keys = heads_of(k_array, "k"), values = heads_of(v_array, "v");
    require(keys.heads == kv_heads_ && keys.head_dim == head_dim_, "k is ", describe(k),
            "; it must have shape (tokens, ", kv_heads_, ", ", head_dim_, ")");
    require(shape_of(k_array) == shape_of(v_array), "v is ", describe(v), "; it must have the shape of k, ",
            shape_text(shape_of(k_array)));
    if (window_ == kNoWindow) {
      require(keys.tokens <= capacity_ - length_, "k has ", keys.tokens, " tokens; the cache holds ", length_, " of ",
              capacity_, ": make a larger one, or truncate it");
    } else {
      require(keys.tokens <= capacity_ - window_, "k has ", keys.tokens, " tokens; beside its window of ", window_,
              " the cache takes ", capacity_ - window_, " at a time: append them in chunks, or make a larger one");
      require(keys.tokens <= kMostWidth - length_, "the cache has seen ", length_, " tokens, which is the most it can");
    }
    const int rows = static_cast<int>(keys.tokens);
    Offender in_k, in_v;
    note_not_finite(keys, 0, rows, in_k);
    note_not_finite(values, 0, rows, in_v);
    in_k.check("k");
    in_v.check("v");
    {
      const py::gil_scoped_release no_gil;
      if (length_ + rows - base_ > slots()) slide();
      store_keys(kernels_, stored_, keys, values, 0, static_cast<size_t>(length_ - base_), rows);
    }
    length_ += rows;
  }

  py::array_t<float> attend(Object q, int64_t left, int64_t right, Object bias, Object scale, Object threads,
                            Object out) {
    const Turn turn(*this);
    const auto array = checked_array<float>(q, "q");
    const Heads queries = heads_of(array, "q");
    require(queries.head_dim == head_dim_, "q is ", describe(q), "; its head_dim must be the cache's, ", head_dim_);
    require(queries.tokens <= length_, "q has ", queries.tokens, " rows; they are the queries of the last tokens, and ",
            length_, " have been appended: append theirs first");
    const int first = length_ - static_cast<int>(queries.tokens);
    if (window_ != kNoWindow) {
      left = left < 0 ? window_ : std::min<int64_t>(left, window_);
      require(base_ == 0 || first - left >= base_, "q has ", queries.tokens,
              " rows; the first of them sees keys that the cache has dropped: attend after each chunk");
    }
    auto result = result_array<float>(out, shape_of(array));
    if (!out.is_none()) require_apart(array, "q", result);
    const std::vector<Sequence> sequences = {{0, static_cast<int>(queries.tokens), 0, length_ - base_, 0}};
    Attending attending(queries, kv_heads_, sequences, scale, {left, right});
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
    require(length >= 0 && length <= length_, "length is ", length, "; it must be 0 to what the cache holds, ",
            length_);
    require(base_ == 0 || length - window_ >= base_, "length is ", length,
            "; a token there sees keys that the cache has "
            "dropped: it must be at least ",
            base_ + window_);
    length_ = static_cast<int>(length);
  }

  std::unique_ptr<KeyValueCache> fork() {
    const Turn turn(*this);
    auto copy = std::make_unique<KeyValueCache>(kernels_, kv_heads_, head_dim_, capacity_, window_);
    copy->length_ = length_;
    copy->base_ = base_;
    move_slots(stored_, copy->stored_, 0);
    return copy;
  }

  static constexpr int kNoWindow = -1;

  int length() const { return length_; }
  int capacity() const { return capacity_; }
  size_t bytes() const { return memory_.size(); }
  int window() const { return window_; }
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

  int slots() const { return static_cast<int>(std::get<KeyValuesI8>(stored_).capacity); }

  // Drops what no later query sees, in whole splits.
  void slide() {
    const int base = std::max(0, length_ - window_) / kKeySplit * kKeySplit;
    move_slots(stored_, stored_, static_cast<size_t>(base - base_));
    base_ = base;
  }

  // What `from` holds beyond its first `skipped` slots, a multiple of four, to the front of `to`. Pages that hold
  // nothing stay untouched.
  void move_slots(const Stored& from_stored, const Stored& to_stored, size_t skipped) const {
    const KeyValuesI8 &from = std::get<KeyValuesI8>(from_stored), &to = std::get<KeyValuesI8>(to_stored);
    const size_t rows = round_up(static_cast<size_t>(length_ - base_), 4) - skipped;
    for (size_t h = 0; h < static_cast<size_t>(kv_heads_); ++h) {
      const size_t begin = h * to.capacity, source = begin + skipped;
      std::memmove(to.k + begin * stride(), from.k + source * stride(), rows * stride());
      std::memmove(to.v + begin * stride(), from.v + source * stride(), rows * stride());
      std::memmove(to.k_scale + begin, from.k_scale + source, rows * sizeof(float));
      std::memmove(to.v_scale + begin, from.v_scale + source, rows * sizeof(float));
    }
  }

  size_t stride() const { return round_up(static_cast<size_t>(head_dim_), kLanes); }

  size_t place(std::byte* memory) {
    Scratch pieces(memory);
    KeyValuesI8 kv{};
    const int spare = window_ == kNoWindow ? 0 : kKeySplit;  // what lies before the window in its first split
    kv.capacity = round_up(static_cast<size_t>(capacity_ + spare), kLanes);
    const size_t rows = static_cast<size_t>(kv_heads_) * kv.capacity, elements = rows * stride();
    kv.k = pieces.take<uint8_t>(elements), kv.k_scale = pieces.take<float>(rows);
    kv.v = pieces.take<int8_t>(elements), kv.v_scale = pieces.take<float>(rows);
    stored_ = kv;
    return pieces.used();
  }

  const KernelTable& kernels_;
  const int kv_heads_, head_dim_, capacity_, window_;
  int length_ = 0;
  int base_ = 0;
  std::atomic<uint32_t> taken_{0};
  AlignedBuffer memory_;
  Stored stored_;
};

std::unique_ptr<KeyValueCache> make_cache(int64_t kv_heads, int64_t head_dim, int64_t capacity, Object window) {
  const auto check = [](const char* name, int64_t value, int64_t least, int64_t most) {
    require(value >= least && value <= most, name, " is ", value, "; it must be ", least, " to ", most);
    return static_cast<int>(value);
  };
  const int tokens = check("capacity", capacity, 1, kMostWidth);
  int reach = KeyValueCache::kNoWindow;
  if (!window.is_none()) {
    require(py::isinstance<py::int_>(window), "window is ", describe(window), "; pass an integer or None");
    reach = check("window", integer(window, "window"), 0, capacity - 1);
  }
  return std::make_unique<KeyValueCache>(current_kernels(), check("kv_heads", kv_heads, 1, 1024),
                                         check("head_dim", head_dim, 1, kMaxHeadDim), tokens, reach);
}

}  // namespace

void bind_key_value_cache(py::module_& m) {
  const auto p = [](const char* name) { return py::arg(name); };
  py::class_<KeyValueCache>(m, "KeyValueCache")
      .def(py::init(&make_cache), p("kv_heads"), p("head_dim"), p("capacity"), p("window"))
      .def("append", &KeyValueCache::append, p("k"), p("v"))
      .def("attend", &KeyValueCache::attend, p("q"), p("left"), p("right"), p("bias"), p("scale"), p("threads"),
           p("out"))
      .def("truncate", &KeyValueCache::truncate, p("length"))
      .def("fork", &KeyValueCache::fork)
      .def_property_readonly("length", &KeyValueCache::length)
      .def_property_readonly("capacity", &KeyValueCache::capacity)
      .def_property_readonly("window",
                             [](const KeyValueCache& cache) -> py::object {
                               if (cache.window() == KeyValueCache::kNoWindow) return py::none();
                               return py::int_(cache.window());
                             })
      .def_property_readonly("nbytes", &KeyValueCache::bytes)
      .def_property_readonly("isa", &KeyValueCache::isa);
}

}  // namespace pocketformer::bindings
