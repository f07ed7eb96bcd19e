// Some columns of a value, where they lie: no step of its own.
#pragma once

#include "runtime/lowering.h"

namespace pocketformer {

struct Columns {
  std::string in, out;
  int64_t begin = 0, width = 0;

  static constexpr const char* kName = "columns";
  static constexpr const char* kDoc = "`out = in[:, begin : begin + width]`, a view";
  static constexpr auto fields() {
    return std::tuple{name("in", &Columns::in, "rows"), name("out", &Columns::out, "their columns"),
                      integer("begin", &Columns::begin, 0, kMaxWidth, "the first column"),
                      integer("width", &Columns::width, 1, kMaxWidth, "how many")};
  }

  void lower(Lowering& l) const {
    const Value& from = l.floats("in", in);
    l.check(begin + width <= from.rows.width, "width", "is ", width, " from column ", begin, " on, but '", in, "' is ",
            from.rows.width, " wide");
    l.define(
        out,
        {{from.rows.buffer, from.rows.column + static_cast<int>(begin), static_cast<int>(width)}, from.domain, {}});
  }
};

}  // namespace pocketformer
