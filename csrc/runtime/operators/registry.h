// The operators a graph may hold. To add one: a file beside this, its line here, a method of GraphBuilder
// (python/pocketformer/graph) and plain loops in the interpreter (reference).
#pragma once

#include <string>
#include <vector>

#include "runtime/fields.h"
#include "runtime/lowering.h"

namespace pocketformer {

struct OperatorInfo {
  std::string name, doc;
  std::vector<FieldInfo> fields;
};
std::vector<OperatorInfo> operators();

// Steps for `item`, which is checked first. `place` becomes more exact once the kind of operator is known.
void lower_operator(Lowering& lowering, const Item& item, Place& place);

// The last steps: `result` reaches the caller's array.
void write_output(Lowering& lowering, const Value& result);

}  // namespace pocketformer
