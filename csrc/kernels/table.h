// The contract between the runtime and the kernels: one table of functions per ISA.
//
// A kernel neither allocates, nor threads, nor dispatches; it trusts its arguments (the runtime has checked them).
// Row buffers of floats have a leading dimension that is a multiple of 16 and hold zeros in the padding columns
// [width, round_up(width, 16)); every kernel that writes a row keeps that promise. All base pointers are 64-byte
// aligned unless a comment says otherwise. docs/format.md defines the layouts and the arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pocketformer {

inline constexpr int kLanes = 16;        // channels per panel; virtual vector lanes
inline constexpr int kKeyTile = 128;     // keys per softmax tile; part of the arithmetic, not a tuning knob
inline constexpr int kKeySplit = 1024;   // keys whose softmax is computed on its own, then joined; likewise
inline constexpr int kMaxHeadDim = 256;  // bounds the attention kernels' stack scratch
inline constexpr int kUnlimited = 1 << 30;

enum class Activation : int32_t { kNone, kGelu, kGeluTanh, kRelu, kSilu, kTanh };
enum class NormKind : int32_t { kLayer, kRms };
enum class PoolKind : int32_t { kMean, kCls, kMax, kLast, kMeanSqrt, kWeightedMean };

// x[rows][ldx] → q[rows][ldq] with one scale a row, or a group of k. `q` holds value + activation_offset, or with
// `is_signed` the value; columns [k, round_up(k, 16)) are written as zero, and offset. `ldq` is a multiple of 64.
// `rotate` is the Hadamard block (0 or a power of two dividing k).
struct QuantizeArgs {
  const float* x;
  size_t ldx;
  uint8_t* q;
  size_t ldq;
  float* scale;
  int rows, k, rotate;
  bool is_signed = false;
  size_t ld_scale = 0;     // 0: scale[rows]; else [rows][ld_scale], one a group, and nothing is rotated
  int group = 0;           // with `sum` or `ld_scale`: 0, the whole row, or a multiple of 16 that divides k
  int32_t* sum = nullptr;  // or [rows][ld_sum]: Σ of a group's values
  size_t ld_sum = 0;
};

// Those from kI3 on are of tables, which are looked up and never multiplied; kI5 and kI6 are multiplied where they lie
// in panels.
enum class Format : int32_t { kF32, kF16, kI8, kI4, kI3, kI5, kI6, kI7 };
inline constexpr int kFormats = 8, kProducts = 4;

// Its inputs are floats too, and what follows it is precise.
inline constexpr bool is_float(Format format) { return format == Format::kF32 || format == Format::kF16; }

inline constexpr int kPairBound = 128;   // |w0| + |w1| of a bounded pair: 255 · 128 fits 16 bits
inline constexpr int kBlockK = 256;      // of k that share an fp16 scale where groups have int8 multiples of it
inline constexpr int kMostGroups = 512;  // of a channel whose scales are fp16, which are widened on the stack
inline constexpr int kSkippedK = 16384;  // longest row whose zeros are listed, on the stack
inline constexpr int kLookedUpK = 4096;  // longest channel whose values are looked up, or put together, on the stack

// A weight as it lies in the file: n channels in panels of 16, or a table by rows.
struct WeightView {
  Format format;
  const void* panels;  // kF32, kF16 [n/16][k][16]; kI8 [n/16][⌈k/4⌉][16][4]; kI4 [n/16][⌈k/8⌉][16][4]: k-group 2i in
                       // the low nibbles, 2i + 1 in the high ones; kI5, kI6: the same of the lower four bits
  const uint8_t* high = nullptr;     // kI5, kI6: upper bits [n/16][⌈k/step⌉][16][4], of the step's k-groups from the
                                     // lowest bits of a byte on; a step is 32 and 16
  const int8_t* codebook = nullptr;  // what indices of 3 to 7 bits stand for, values within ±127; consecutive ones in
                                     // panels of kI5 and kI6
  const float* scale = nullptr;    // of integers: one a channel [round_up(n, 16)], or with a group [n/16][k/group][16]
  const float* minimum = nullptr;  // or like scale: times Σ of the group's x, added
  const uint16_t* half_scale = nullptr;    // with a group, fp16 instead of `scale`, and of `minimum`
  const uint16_t* half_minimum = nullptr;  //
  const int8_t* subscale = nullptr;        // or what they are multiplied by, [n/16][k/group][16]; the fp16 are then
  const int8_t* subminimum = nullptr;      // [n/16][k/kBlockK][16]
  const int32_t* colsum = nullptr;         // kI8: Σ of a channel's values, without a group
  int n, k;
  int group = 0;  // 0: one scale a channel
  int rotate = 0;
  int inputs = 0;  // of what it is multiplied by, so many share a scale: a group or half of it; 0: all of a row
  bool bounded_pairs = false;  // kI8 without a group: |w| of inputs 2j and 2j + 1 add up to at most kPairBound
};

// What follows a product, applied to a tile while it is in registers or near: bias, activation, times `multiply`, plus
// `residual`, each rounded. `residual` may be `out` where nothing comes between it and the bias. Rows of both
// are as long as those of `out` that are written.
struct Epilogue {
  const float* bias = nullptr;      // [round_up(n, 16)]
  const float* multiply = nullptr;  // [m][ld_multiply]
  size_t ld_multiply = 0;
  const float* residual = nullptr;  // [m][ld_residual]
  size_t ld_residual = 0;
  Activation activation = Activation::kNone;
  bool precise = true;  // the activation's polynomial: for results that stay floats, or that are rounded to int8 next
};

// out[m][16·panel …] = epilogue(x · weightᵀ) for panels [panel_begin, panel_end). Rows of `out` may be as short as n;
// of the padding columns those below `ldo` are written as zeros.
struct GemmArgs {
  const void* x;  // kF32, kF16: float; kI8: from quantize_rows; kI4 and groups: from it, signed and with sums
  size_t ldx;
  const float* x_scale = nullptr;  // kI8, kI4: [m], or with ld_scale [m][ld_scale] by the weight's `inputs`
  size_t ld_scale = 0;
  const int32_t* x_sum = nullptr;  // kI4 and groups: [m][ld_sum], by the weight's group, or `inputs`
  size_t ld_sum = 0;
  const int32_t* x_start = nullptr;  // like x_sum, the kernel's own: what sums of 16 bits begin with
  WeightView weight;
  float* out;
  size_t ldo;
  int m, panel_begin, panel_end;
  Epilogue epilogue = {};
  bool skip = false;  // kI8: x holds 0…127, from it signed; groups of four zeros are passed over; k ≤ kSkippedK
  const float* start = nullptr;  // kF32: what the sums begin with, [m][ld_start], or null: zeros
  size_t ld_start = 0;
};

// One embedding table added to (or, first, written to) `out`.
struct EmbedArgs {
  const void* table;
  const float* scale;  // per row for integers, null for fp32 and fp16
  bool panels;         // table stored as a linear's panels instead of by rows
  int bits = 8;        // of an integer, or 16 for fp16; below 8 rows are [⌈width/16⌉][2·bits] bytes: 16 indices into
                       // `codebook`, which has 2^bits values, each `bits` bits on from the one before, lowest bit first
  const int8_t* codebook = nullptr;
  const int32_t* index;  // [rows]
  int rows, width;
  int rotate;  // Hadamard block that the sum is rotated by; of a table that is not accumulated
  bool accumulate;
  float* out;
  size_t ldo;
};

// out may equal x.
struct NormArgs {
  const float* x;
  size_t ldx;
  const float* weight;
  const float* bias;  // or null
  float* out;
  size_t ldo;
  int rows, width;
  float eps;
  NormKind kind;
};

// Rotary position embedding of rows of heads side by side: in each head channels i and i + rotated_dims/2, for
// i < rotated_dims/2, turn by position · frequency[i], a float32 product; channels from rotated_dims on stay. x may
// start anywhere in wider rows; out is a row buffer of its own, or x, whose columns beyond the heads are then left
// alone.
struct RopeArgs {
  const float* x;
  size_t ldx;
  int rows, heads, head_dim, rotated_dims;
  const float* frequency;   // [rotated_dims/2], whatever scaling of long contexts already in them
  float factor;             // multiplies sine and cosine (YaRN's attention factor), or 1
  const int32_t* position;  // [rows], below 2^17 where frequencies reach 1
  float* out;
  size_t ldo;
};

// Keys and values of one attention layer, all sequences; a sequence owns consecutive slots that start at a multiple
// of 16. `head_stride` = round_up(head_dim, 16). Unused slots may hold anything finite.
struct KeyValuesI8 {
  uint8_t* k;       // [kv_heads][capacity][head_stride], value + activation_offset
  float* k_scale;   // [kv_heads][capacity]
  int8_t* v;        // [kv_heads][capacity/4][head_stride][4]: four consecutive keys of a channel side by side
  float* v_scale;   // [kv_heads][capacity]
  size_t capacity;  // multiple of 16
};

struct KeyValuesF32 {
  float* k;  // [kv_heads][capacity][head_stride]
  float* v;  // [kv_heads][capacity][head_stride]
  size_t capacity;
  uint16_t* half_k = nullptr;  // or fp16 instead of both: rounded when they are stored, ±65504 at most, and widened
  uint16_t* half_v = nullptr;  // when they are read
};

// Rows of `heads` heads side by side (head h at column h·head_dim of x) → int8 with one scale a (row, head). With
// `rotate` ≠ 0, a power of two ≤ 128 that divides head_dim, each head is multiplied by the unnormalised Hadamard matrix
// of that block first: where queries and keys are both rotated by B, q·k is B times what it was and the attention's
// scale is the model's over B. Rows may start anywhere: nothing beyond their heads is read.
struct QuantizeHeadsArgs {
  const float* x;
  size_t ldx;
  int rows, heads, head_dim, head_stride, rotate;
  int8_t* q;     // [rows][heads][head_stride]
  float* scale;  // [rows][heads]
};

// Keys and values of consecutive tokens of one sequence; the first goes to `slot`. Rows as in QuantizeHeadsArgs; keys
// alone are rotated.
struct StoreArgs {
  const float* k;
  size_t ldk;
  const float* v;
  size_t ldv;
  int rows, kv_heads, head_dim, head_stride;
  size_t slot;
};

struct StoreI8Args {
  StoreArgs common;
  int rotate;
  KeyValuesI8 kv;
};

struct StoreF32Args {
  StoreArgs common;
  KeyValuesF32 kv;
};

// Query at position i sees keys j with i − left ≤ j ≤ i + right (kUnlimited = no bound; causal is right = 0).
struct KeyRange {
  int left, right;
};

// Keys [begin, end) of a sequence, at least one; each counts `times` times. Where there is a bias, they may have one of
// their own: of the first query of the sequence and key 0, from where AttentionArgs tells the way.
struct KeySpan {
  int begin, end;
  int times = 1;
  const float* bias = nullptr;
  int bias_of_key = 0;
};

// Attention of `queries` consecutive tokens of one sequence, for heads [head_begin, head_end). Every query sees the
// keys of `spans`, as often as they count a key, and of those from `first_key` on the ones in its range.
struct AttentionArgs {
  int queries, first_position;  // of the first query in its sequence
  int keys;                     // length of the sequence
  size_t segment_slot;          // slot of the sequence's first key
  int heads, kv_heads, head_dim, head_stride, head_begin, head_end;
  float scale;
  float softcap;  // c: scores s become c·tanh(s/c) before the softmax; 0 leaves them
  KeyRange range;
  int first_key = 0, span_count = 0;
  const KeySpan* spans = nullptr;
  const float* bias;  // [heads][ld_bias] or null; entry i·bias_of_query + j·bias_of_key + bias_center
  size_t ld_bias;
  int bias_center, bias_of_query = 1, bias_of_key = -1;  // of a query 1, or 0: each key has its own
  float* out;  // [queries][ldo], head h at column h·head_dim; padding columns are the caller's
  size_t ldo;
};

struct AttentionI8Args {
  const int8_t* q;       // [queries][heads][head_stride], from quantize_heads
  const float* q_scale;  // [queries][heads]
  KeyValuesI8 kv;
  AttentionArgs common;
  bool fine = false;  // P has 14 bits, two planes of 7 with a product each, instead of 7
};

struct AttentionF32Args {
  const float* q;  // [queries][ldq], head h at column h·head_dim; may start anywhere
  size_t ldq;
  KeyValuesF32 kv;
  AttentionArgs common;
};

// x[rows][ldx] → out[0 … round_up(width,16)): one sequence, or its rows from `first` on. The weighted mean counts row r
// first + r + 1 times.
struct PoolArgs {
  const float* x;
  size_t ldx;
  int rows, width, first;
  PoolKind kind;
  float* out;
};

// Up to four rows of `out`: each the sum of `taps` rows of x, every one of them, wherever it lies, times a row of
// `weight`. Columns [0, columns), whole vectors of 16.
struct DepthwiseArgs {
  static constexpr int kRows = 4;
  const float* const* x;  // [taps][kRows]
  const float* weight;    // [taps][columns]
  const float* bias;      // or null
  float* out;
  size_t ldo;
  int taps, columns, rows;
};

struct L2NormalizeArgs {
  const float* x;
  size_t ldx;
  float* out;  // may equal x
  size_t ldo;
  int rows, width;
};

// out = cap·tanh(x/cap); rows are whole vectors. out may equal x.
struct SoftCapArgs {
  const float* x;
  size_t ldx;
  float* out;
  size_t ldo;
  int rows, width;
  float cap;
};

// Activation kind of x[count], by its precise polynomial. May start anywhere; out may equal x.
struct ActivateArgs {
  const float* x;
  float* out;
  size_t count;
  Activation kind;
};

// Rows may start anywhere and are as long as `width`; out may equal x.
struct SoftmaxArgs {
  const float* x;
  size_t ldx;
  float* out;
  size_t ldo;
  int rows, width;
};

// Which product takes a weight: that of kI4 all integers whose scales are of groups.
inline int kernel_of(const WeightView& weight) {
  return static_cast<int>(weight.group != 0 ? Format::kI4 : weight.format);
}

struct KernelTable {
  const char* isa;
  int activation_offset;  // added to quantized activations so that u8×s8 hardware can take them: 0 or 128
  void (*quantize_rows)(const QuantizeArgs&);
  void (*gemm[kProducts])(const GemmArgs&);  // by kernel_of; null where there is none
  void (*embed)(const EmbedArgs&);
  void (*norm)(const NormArgs&);
  void (*rope)(const RopeArgs&);
  void (*quantize_heads)(const QuantizeHeadsArgs&);
  void (*store_i8)(const StoreI8Args&);
  void (*store_f32)(const StoreF32Args&);
  void (*attention_i8)(const AttentionI8Args&);
  void (*attention_f32)(const AttentionF32Args&);
  void (*pool)(const PoolArgs&);
  void (*depthwise)(const DepthwiseArgs&);
  void (*l2_normalize)(const L2NormalizeArgs&);
  void (*soft_cap)(const SoftCapArgs&);
  void (*activate)(const ActivateArgs&);
  void (*softmax)(const SoftmaxArgs&);
  // Peak of dot4 and of fma on registers: the multiply-adds done in so many rounds of a product's tile.
  int64_t (*probe_dot4)(int64_t iterations);
  int64_t (*probe_bounded)(int64_t iterations);  // of weights whose pairs are bounded
  int64_t (*probe_fma)(int64_t iterations);
  // Reads `bytes`, a multiple of 4096, once.
  void (*probe_read)(const void* data, size_t bytes);
};

}  // namespace pocketformer
