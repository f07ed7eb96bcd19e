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
#include <stdexcept>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/dispatch.h"
#include "decoder.h"
#include "runtime/feeds.h"
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

constexpr size_t kMaxArenaBytes = 1 << 24;

struct Batch {
  std::vector<int32_t> ids, types, counts;
  std::vector<float> image;
  std::vector<int64_t> offsets{0}, rows;
  Feeds feeds;
};

Batch batch(FuzzedDataProvider& bytes, const Program& program) {
  Batch b;
  const auto in_range = [&](int64_t limit) {
    const int64_t value = bytes.ConsumeIntegral<uint8_t>();
    return value == 255 ? limit : value % std::max<int64_t>(limit, 1);  // 255: one too far
  };
  const int tokens = program.domain("tokens"), chosen = program.domain("chosen");
  for (int sequences = bytes.ConsumeIntegralInRange(0, 5); sequences > 0; --sequences) {
    const int64_t most = program.domains[static_cast<size_t>(tokens)].max_rows;
    b.offsets.push_back(b.offsets.back() + in_range(std::min<int64_t>(most + 1, 150)));
  }
  b.ids.resize(static_cast<size_t>(b.offsets.back()));
  for (int32_t& id : b.ids) id = static_cast<int32_t>(in_range(program.inputs[0].limit));
  b.feeds.inputs[0] = {b.ids.empty() ? static_cast<const void*>(b.offsets.data()) : b.ids.data(), b.ids.size()};
  for (size_t i = 1; i < program.inputs.size(); ++i) {
    if (program.inputs[i].dtype == InputType::kRows) {
      const Domain& grid = program.domains[static_cast<size_t>(program.inputs[i].domain)];
      const size_t rows = (b.offsets.size() - 1) * static_cast<size_t>(grid.max_rows);
      const size_t numbers = rows * static_cast<size_t>(program.inputs[i].width);
      if (numbers > kMaxArenaBytes) continue;  // refused without it
      b.image.resize(std::max<size_t>(numbers, 1));
      uint32_t state = bytes.ConsumeIntegral<uint8_t>();
      for (float& x : b.image) x = static_cast<float>((state = state * 1664525u + 1013904223u) >> 20) / 1024 - 2;
      b.feeds.inputs[i] = {b.image.data(), rows - (bytes.ConsumeIntegralInRange(0, 15) == 15 && rows > 0)};
      continue;
    }
    if (!bytes.ConsumeBool()) continue;
    const bool types = program.inputs[i].name == "types";
    std::vector<int32_t>& entries = types ? b.types : b.counts;
    const size_t count = types ? b.ids.size() : b.offsets.size() - 1;
    entries.resize(std::max<size_t>(count, 1));
    for (int32_t& entry : entries) entry = static_cast<int32_t>(in_range(program.inputs[i].limit));
    b.feeds.inputs[i] = {entries.data(), count};
  }
  b.rows.resize(bytes.ConsumeIntegralInRange<size_t>(0, 6));
  for (int64_t& row : b.rows) row = in_range(static_cast<int64_t>(b.ids.size()));
  if (bytes.ConsumeIntegralInRange(0, 15) == 15) b.offsets.back() += bytes.ConsumeIntegral<int8_t>();
  b.feeds.domains[tokens] = {b.offsets.data(), b.offsets.size()};
  const void* rows = b.rows.empty() ? static_cast<const void*>(b.offsets.data()) : b.rows.data();
  b.feeds.domains[chosen] = {bytes.ConsumeIntegralInRange(0, 15) == 15 ? nullptr : rows, b.rows.size()};
  return b;
}

// Empty when the input was refused.
std::vector<float> run(const std::shared_ptr<const Program>& program, const Feeds& feeds, Tuning tuning, int threads) {
  Session session(program, tuning);
  try {
    std::vector<float> out(session.output_rows(feeds) * static_cast<size_t>(program->output_width), 7.0f);
    session.run(feeds, threads, out.data());
    return out;
  } catch (const std::invalid_argument&) {
    return {};
  }
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

void print(const Item& item) {
  if (const Record* record = item.as<Record>()) {
    for (const auto& [key, value] : *record) {
      std::fprintf(stderr, " %s", key.c_str());
      print(value);
    }
  } else if (const List* list = item.as<List>()) {
    for (const Item& entry : *list) {
      std::fprintf(stderr, "\n ");
      print(entry);
    }
  } else {
    std::fprintf(stderr, " %s", brief(item).c_str());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzedDataProvider bytes(data, size);
  Decoder decoder(bytes);
  const Item graph = decoder.graph();
  std::shared_ptr<const Program> program, scalar;
  try {
    program = std::make_shared<const Program>(graph, decoder.tensors(), kernels());
    scalar = std::make_shared<const Program>(graph, decoder.tensors(), kernels("scalar"));
  } catch (const std::invalid_argument&) {
    return 0;
  }
  if (program->domain("tokens") == kNone || program->domain("chosen") == kNone) return 0;  // renamed by a lie
  const Batch b = batch(bytes, *program);
  const int threads = bytes.ConsumeIntegralInRange(1, 3), block = bytes.ConsumeIntegralInRange(0, 20);
  try {
    Plan plan;
    make_plan(*program, inspect(*program, b.feeds), threads, {}, plan);
    if (plan.bytes > kMaxArenaBytes) return 0;
  } catch (const std::invalid_argument&) {  // run() refuses it too
  }
  const std::vector<float> expected = run(program, b.feeds, {}, 1);
  const bool finite = std::all_of(expected.begin(), expected.end(), [](float x) { return std::isfinite(x); });
  const std::pair<const char*, std::vector<float>> others[] = {
      {"rows", run(program, b.feeds, {Mode::kRows, block}, threads)},
      {"columns", run(program, b.feeds, {Mode::kColumns, 0}, threads)},
      {"the scalar ISA", run(scalar, b.feeds, {}, 1)}};
  for (const auto& [name, other] : others) {
    if (same(expected, other) || !finite || decoder.odd()) continue;  // the bits of a NaN are nobody's promise
    std::fprintf(stderr, "%s, %d threads: another result than one thread's\n", name, threads);
    print(graph);
    std::fprintf(stderr, "\n%zu stages\n", program->stages.size());
    std::abort();
  }
  return 0;
}
