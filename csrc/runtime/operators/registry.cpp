#include "runtime/operators/registry.h"

#include <tuple>

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

using Operators = std::tuple<Embed, Norm, Linear, Columns, Rope, QuantizeHeads, Store, Attention, Pool, Select,
                             Normalize, Unfold, Prepend, Concat, Depthwise, Fold, Resize, SoftCap, HeadMean, Match,
                             Merge, Moments, Standardize, SoftPool, Spread, Average, Mix, LinearAttentionOp, Fit,
                             Convolve, Nystrom, Halt, Keep, Contribute, Summarize>;

// fn(operator) for each, of which only the type counts.
template <class Fn>
void for_each_operator(Fn fn) {
  std::apply([&](const auto&... each) { (fn(each), ...); }, Operators{});
}

}  // namespace

std::vector<OperatorInfo> operators() {
  std::vector<OperatorInfo> all;
  for_each_operator([&]<class Op>(const Op&) { all.push_back({Op::kName, Op::kDoc, schema<Op>()}); });
  return all;
}

void lower_operator(Lowering& lowering, const Item& item, Place& place) {
  const Record* record = item.as<Record>();
  require(record != nullptr, place.text(), " is ", brief(item), "; it must be an object");
  const Item* kind = find(*record, "op");
  const std::string* name = kind == nullptr ? nullptr : kind->as<std::string>();
  bool known = false;
  std::string names;
  for_each_operator([&]<class Op>(const Op&) {
    names += concat(names.empty() ? "" : ", ", Op::kName);
    if (known || name == nullptr || *name != Op::kName) return;
    known = true;
    place = Place(concat(place.text(), " (", Op::kName, ")"));
    parse<Op>(item, place, "op").lower(lowering);
  });
  if (!known) place.refuse("op", kind == nullptr ? Item{} : *kind, "one of " + names);
}

void write_output(Lowering& lowering, const Value& result) { lower_output(lowering, result); }

}  // namespace pocketformer
