// Checks of a host function's tensors, for *_op.cpp files. A failed check throws one sentence,
// `op: argument must rule; got value`, built from the same tokens as the test, so that text and test cannot drift.
// Every host function defines `constexpr const char* kOp` with the operator's name; the macros read it.
// Rules about numbers and about data (indices, slots) are checked behind the C interface, for C callers too.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "llamba.h"

// CHECK_SHAPE(x, batch, ntokens, 4): each size is an integer expression; its text appears in the sentence.
#define CHECK_SHAPE(tensor, ...) llamba::check_shape(kOp, #tensor, tensor, "(" #__VA_ARGS__ ")", {__VA_ARGS__})
#define CHECK_SAME_SHAPE(tensor, like) llamba::check_same_shape(kOp, #tensor, tensor, #like, like)
#define CHECK_DIM(tensor, least, most) llamba::check_dim(kOp, #tensor, tensor, least, most)
// CHECK_DTYPE(slots, Int)
#define CHECK_DTYPE(tensor, dtype) llamba::check_dtype(kOp, #tensor, tensor, torch::headeronly::ScalarType::dtype)
#define CHECK_SAME_DTYPE(tensor, like) llamba::check_same_dtype(kOp, #tensor, tensor, #like, like)
#define CHECK_SAME_DEVICE(tensor, like) llamba::check_same_device(kOp, #tensor, tensor, #like, like)
// CHECK_STRIDE(x, -1, 1): dimensions count from the end when negative; a dimension of size 1 or less passes.
#define CHECK_STRIDE(tensor, dim, stride) llamba::check_stride(kOp, #tensor, tensor, dim, stride)
// CHECK_LIKE(dt, xBC, batch, ntokens, nheads): this shape, dtype and device of xBC, stride 1 in the last dimension.
// CHECK_INDICES(slots, xBC, batch): the same, but int32.
#define CHECK_LIKE(tensor, like, ...) \
  do {                                \
    CHECK_SHAPE(tensor, __VA_ARGS__); \
    CHECK_SAME_DTYPE(tensor, like);   \
    CHECK_STRIDE(tensor, -1, 1);      \
    CHECK_SAME_DEVICE(tensor, like);  \
  } while (0)
#define CHECK_INDICES(tensor, like, ...) \
  do {                                   \
    CHECK_SHAPE(tensor, __VA_ARGS__);    \
    CHECK_DTYPE(tensor, Int);            \
    CHECK_STRIDE(tensor, -1, 1);         \
    CHECK_SAME_DEVICE(tensor, like);     \
  } while (0)
// CHECK_RANGE(ntokens, 1, 64): both ends included
#define CHECK_RANGE(value, least, most) llamba::check_range(kOp, #value, value, least, most)
// CHECK_FLOAT(eps): the double as the float of the C interface; refused, with its own value, if that is 0 or infinite
#define CHECK_FLOAT(value) llamba::check_float(kOp, #value, value)
// CHECK_FLOATING(x): float32, bfloat16 or float16, as the C interface names it
#define CHECK_FLOATING(tensor) llamba::check_floating(kOp, #tensor, tensor)
// CHECK_WRITTEN(out, x, bias): no two elements of out share memory, nor does out with the tensors (or optional ones)
// after it. CHECK_WRITTEN_OR_SAME(out, x): out may also be x itself, element for element.
#define CHECK_WRITTEN(tensor, ...) llamba::check_written(kOp, #tensor, tensor, #__VA_ARGS__, {__VA_ARGS__}, false)
#define CHECK_WRITTEN_OR_SAME(tensor, ...) \
  llamba::check_written(kOp, #tensor, tensor, #__VA_ARGS__, {__VA_ARGS__}, true)
// CHECK_ROWS(x): the leading dimensions of a tensor of 1 to 3 dimensions whose last one has stride 1.
// CHECK_HEAD_ROWS(x): the same of 1 to 4 dimensions.
#define CHECK_ROWS(tensor) llamba::check_rows(kOp, #tensor, tensor)
#define CHECK_HEAD_ROWS(tensor) llamba::check_head_rows(kOp, #tensor, tensor, 4)

namespace llamba {

using torch::stable::Tensor;

// [batch, ntokens, width]; missing leading dimensions have size 1.
struct Rows {
  int64_t batch, ntokens, width;
  int64_t stride_batch, stride_token;
};
// [batch, ntokens, nheads, width]; missing leading dimensions have size 1.
struct HeadRows {
  int64_t batch, ntokens, nheads, width;
  int64_t stride_batch, stride_token, stride_head;
};

// A tensor, or an optional one that may be absent.
struct AnyTensor {
  const Tensor* tensor;
  AnyTensor(const Tensor& given) : tensor(&given) {}
  AnyTensor(const std::optional<Tensor>& given) : tensor(given.has_value() ? &*given : nullptr) {}
};

// One of a list of tensors, such as k_caches[3].
struct NamedTensor {
  std::string name;
  const Tensor* tensor;
};

// In the names below a leading * (an optional argument) is dropped from the sentence.
void check_shape(const char* op, const char* name, const Tensor& tensor, const char* rule,
                 std::initializer_list<int64_t> sizes);
void check_same_shape(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                      const Tensor& like);
void check_dim(const char* op, const char* name, const Tensor& tensor, int64_t least, int64_t most);
void check_dtype(const char* op, const char* name, const Tensor& tensor, torch::headeronly::ScalarType dtype);
void check_same_dtype(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                      const Tensor& like);
void check_same_device(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                       const Tensor& like);
void check_stride(const char* op, const char* name, const Tensor& tensor, int64_t dim, int64_t stride);
void check_range(const char* op, const char* name, int64_t value, int64_t least, int64_t most);
float check_float(const char* op, const char* name, double value);
// other_names: of others, separated by ", ".
void check_written(const char* op, const char* name, const Tensor& tensor, const char* other_names,
                   std::initializer_list<AnyTensor> others, bool or_same);
// No two of the tensors share memory.
void check_apart(const char* op, const std::vector<NamedTensor>& tensors);
llamba_dtype check_floating(const char* op, const char* name, const Tensor& tensor);
Rows check_rows(const char* op, const char* name, const Tensor& tensor);
HeadRows check_head_rows(const char* op, const char* name, const Tensor& tensor, int64_t most_dims);

// Throws the sentence that a *_cpu or *_cuda function has recorded, unless status is LLAMBA_OK.
void check_status(int status, const char* sentence);

}  // namespace llamba

// What this thread's operator refused last; read by llamba_kernels/_load.py, too.
extern "C" {
LLAMBA_API const char* llamba_op_error(void);
LLAMBA_API int llamba_op_status(void);
}
