// The parts of a graph beside its operators: domains, inputs, weights and states, as a file names them.
#pragma once

#include <string>
#include <tuple>

#include "kernels/table.h"
#include "runtime/fields.h"

namespace pocketformer {

enum class DomainKind { kRagged, kGrid, kOne, kSelected };

// What a row stands for.
struct DomainSpec {
  std::string name, of;
  DomainKind kind{};
  int64_t max_rows = 0, height = 0, width = 0, prepended = 0, merged = 0;
  bool halting = false;
  int64_t summarized = 0;

  static constexpr Choice<DomainKind> kKinds[] = {{"ragged", DomainKind::kRagged},
                                                  {"grid", DomainKind::kGrid},
                                                  {"one", DomainKind::kOne},
                                                  {"selected", DomainKind::kSelected}};
  static constexpr auto fields() {
    return std::tuple{
        name_of(),
        choice("kind", &DomainSpec::kind, kKinds,
               "`ragged`: rows of all sequences end to end; `grid`: `height` × `width` rows a sequence; `one`: a row a "
               "sequence; `selected`: the rows of another domain that the caller names"),
        optional_name("of", &DomainSpec::of, "the domain it is made from; null for one that the caller fills"),
        optional_integer("max_rows", &DomainSpec::max_rows, 0, 1 << 20,
                         "rows of the longest sequence; of a ragged domain without `of`"),
        optional_integer("height", &DomainSpec::height, 0, 1 << 15, "of a grid"),
        optional_integer("width", &DomainSpec::width, 0, 1 << 15, "of a grid"),
        optional_integer("prepended", &DomainSpec::prepended, 0, 1 << 10,
                         "rows before those of `of`, in each sequence of a ragged domain"),
        optional_integer("merged", &DomainSpec::merged, 0, 1 << 20,
                         "rows fewer than those of `of`, in each sequence of a ragged domain; all are of one length"),
        flag("halting", &DomainSpec::halting,
             "of a ragged domain made from another: those of its rows that `keep` keeps, which may be none"),
        optional_integer("summarized", &DomainSpec::summarized, 0, 1 << 20,
                         "rows of a block of `of`, each whole one of which has a row before those of `of`, in each "
                         "sequence of a ragged domain")};
  }
  static constexpr FieldOf<DomainSpec, std::string> name_of() {
    return pocketformer::name("name", &DomainSpec::name, "by which operators and callers refer to it");
  }
};

enum class InputType { kIndex, kRows };

struct InputSpec {
  std::string name, domain;
  InputType dtype{};
  int64_t limit = 0, width = 0;
  bool optional = false;

  static constexpr Choice<InputType> kTypes[] = {{"i32", InputType::kIndex}, {"f32", InputType::kRows}};
  static constexpr auto fields() {
    return std::tuple{
        pocketformer::name("name", &InputSpec::name, "by which operators and callers refer to it"),
        pocketformer::name("domain", &InputSpec::domain,
                           "of its rows; one that the caller fills, or, of an index, `one` row a sequence"),
        choice("dtype", &InputSpec::dtype, kTypes, "`i32`: an index below `limit` a row; `f32`: `width` numbers a row"),
        optional_integer("limit", &InputSpec::limit, 0, kMaxRows, "one more than the largest index"),
        optional_integer("width", &InputSpec::width, 0, kMaxWidth, "numbers a row"),
        flag("optional", &InputSpec::optional, "an index that is 0 where the caller gives none")};
  }
};

enum class Layout { kPanels, kRows };

// How the scales and minima of groups are stored: as floats, as fp16, or as fp16 of kBlockK inputs and an int8 multiple
// of it for each group.
enum class Scales { kF32, kF16, kTwoLevel };

// What shares a scale of the rounded inputs.
enum class Inputs { kRow, kGroup, kHalfGroup };

struct WeightSpec {
  Format format{};
  Layout layout = Layout::kPanels;
  int64_t n = 0, k = 0, group = 0, rotate = 0;
  Scales scales = Scales::kF32;
  Inputs inputs = Inputs::kRow;
  bool bounded_pairs = false;

  static constexpr Choice<Scales> kScales[] = {
      {"f32", Scales::kF32}, {"f16", Scales::kF16}, {"two_level", Scales::kTwoLevel}};
  static constexpr Choice<Inputs> kInputs[] = {
      {"row", Inputs::kRow}, {"group", Inputs::kGroup}, {"half_group", Inputs::kHalfGroup}};
  static constexpr Choice<Format> kFormats[] = {{"f32", Format::kF32}, {"f16", Format::kF16}, {"i8", Format::kI8},
                                                {"i4", Format::kI4},   {"i3", Format::kI3},   {"i5", Format::kI5},
                                                {"i6", Format::kI6},   {"i7", Format::kI7}};
  // Of a stored number; those below 8 are indices into a codebook.
  static constexpr int bits(Format format) {
    constexpr int kBits[] = {32, 16, 8, 4, 3, 5, 6, 7};
    return kBits[static_cast<int>(format)];
  }
  static constexpr Choice<Layout> kLayouts[] = {{"panels", Layout::kPanels}, {"rows", Layout::kRows}};
  static constexpr auto fields() {
    return std::tuple{
        choice("format", &WeightSpec::format, kFormats,
               "of a stored number; i3 and i7 of tables by rows alone, i5 and i6 of these or in groups"),
        integer("n", &WeightSpec::n, 1, kMaxRows, "output channels, or rows of a table"),
        integer("k", &WeightSpec::k, 1, kMaxWidth, "inputs, or columns of a table"),
        optional_integer("group", &WeightSpec::group, 0, 128,
                         "inputs that share a scale: 16, 32, 64 or 128; 0: all of a channel"),
        optional_integer(
            "rotate", &WeightSpec::rotate, 0, 128,
            "Hadamard block that inputs, or looked up rows, are rotated by; 0 or a power of two that divides k"),
        optional_choice("layout", &WeightSpec::layout, kLayouts, "`rows` for a table that is only looked up"),
        optional_choice("scales", &WeightSpec::scales, kScales,
                        "of groups: float32, float16, or `two_level`: a float16 for 256 inputs and an int8 multiple of "
                        "it for each group"),
        optional_choice("inputs", &WeightSpec::inputs, kInputs,
                        "what shares a scale of the rounded inputs: a row, each group of it, or each half of a group, "
                        "which is then at least 32"),
        flag("bounded_pairs", &WeightSpec::bounded_pairs,
             "of i8 in panels without a group: the magnitudes of inputs 2j and 2j + 1 of a channel add up to at most "
             "128")};
  }
};

enum class Keys { kF32, kF16, kI8 };

struct StateSpec {
  std::string name, domain;
  Keys dtype = Keys::kF32;
  bool kept = false;
  int64_t heads = 0, head_dim = 0, rotate = 0;

  static constexpr Choice<Keys> kTypes[] = {{"int8", Keys::kI8}, {"fp16", Keys::kF16}, {"fp32", Keys::kF32}};
  static constexpr auto fields() {
    return std::tuple{pocketformer::name("name", &StateSpec::name, "by which `store` and `attention` refer to it"),
                      pocketformer::name("domain", &StateSpec::domain, "of the keys; ragged"),
                      choice("dtype", &StateSpec::dtype, kTypes,
                             "of keys and values; of fp16 queries are as of fp32, and what it does not hold is stored "
                             "as ±65504"),
                      integer("heads", &StateSpec::heads, 1, kMaxWidth, "of keys and values"),
                      integer("head_dim", &StateSpec::head_dim, 1, kMaxHeadDim, "channels of a head"),
                      optional_integer("rotate", &StateSpec::rotate, 0, 128,
                                       "Hadamard block over head_dim that int8 queries and keys are rotated by"),
                      flag("kept", &StateSpec::kept,
                           "it outlives a run in the caller's cache: rows that a run brings follow those that the "
                           "cache holds, and no query sees a later key")};
  }
};

}  // namespace pocketformer
