#include "runtime/operators/registry.h"

#include <array>

#include "runtime/operators/attention.h"
#include "runtime/operators/average.h"
#include "runtime/operators/columns.h"
#include "runtime/operators/concat.h"
#include "runtime/operators/convolve.h"
#include "runtime/operators/depthwise.h"
#include "runtime/operators/embed.h"
#include "runtime/operators/fit.h"
#include "runtime/operators/fold.h"
#include "runtime/operators/halt.h"
#include "runtime/operators/linear.h"
#include "runtime/operators/linear_attention.h"
#include "runtime/operators/merge.h"
#include "runtime/operators/mix.h"
#include "runtime/operators/moments.h"
#include "runtime/operators/norm.h"
#include "runtime/operators/normalize.h"
#include "runtime/operators/nystrom.h"
#include "runtime/operators/output.h"
#include "runtime/operators/pool.h"
#include "runtime/operators/prepend.h"
#include "runtime/operators/quantize_heads.h"
#include "runtime/operators/resize.h"
#include "runtime/operators/rope.h"
#include "runtime/operators/select.h"
#include "runtime/operators/soft_pool.h"
#include "runtime/operators/softcap.h"
#include "runtime/operators/store.h"
#include "runtime/operators/summarize.h"
#include "runtime/operators/unfold.h"

namespace pocketformer {
namespace {

// An operator's struct, told apart by its name alone.
struct Entry {
  const char *name, *doc;
  std::vector<FieldInfo> (*schema)();
  void (*lower)(Lowering& lowering, const Item& item, const Place& place);
};

template <class Op>
void lower_one(Lowering& lowering, const Item& item, const Place& place) {
  parse<Op>(item, place, "op").lower(lowering);
}

template <class... Ops>
constexpr std::array<Entry, sizeof...(Ops)> entries() {
  return {Entry{Ops::kName, Ops::kDoc, schema<Ops>, lower_one<Ops>}...};
}

constexpr auto kOperators =
    entries<Embed, Norm, Linear, Columns, Rope, QuantizeHeads, Store, Attention, Pool, Select, Normalize, Unfold,
            Prepend, Concat, Depthwise, Fold, Resize, SoftCap, HeadMean, Match, Merge, Moments, Standardize, SoftPool,
            Spread, Average, Mix, LinearAttentionOp, Fit, Convolve, Nystrom, Halt, Keep, Contribute, Summarize>();

}  // namespace

std::vector<OperatorInfo> operators() {
  std::vector<OperatorInfo> all;
  for (const Entry& entry : kOperators) all.push_back({entry.name, entry.doc, entry.schema()});
  return all;
}

void lower_operator(Lowering& lowering, const Item& item, Place& place) {
  const Record* record = item.as<Record>();
  require(record != nullptr, place.text(), " is ", brief(item), "; it must be an object");
  const Item* kind = find(*record, "op");
  const std::string* name = kind == nullptr ? nullptr : kind->as<std::string>();
  std::string names;
  for (const Entry& entry : kOperators) {
    if (name != nullptr && *name == entry.name) {
      place = Place(concat(place.text(), " (", entry.name, ")"));
      return entry.lower(lowering, item, place);
    }
    names += concat(names.empty() ? "" : ", ", entry.name);
  }
  place.refuse("op", kind == nullptr ? Item{} : *kind, "one of " + names);
}

void write_output(Lowering& lowering, const Value& result) { lower_output(lowering, result); }

}  // namespace pocketformer
