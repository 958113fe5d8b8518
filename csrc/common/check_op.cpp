#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>

#include "common/check.h"

namespace llamba {
namespace {

using torch::headeronly::ScalarType;

// What this thread's operator threw last: Python picks the exception type by the status when the sentence is the same.
thread_local std::string last_sentence;
thread_local int last_status = LLAMBA_OK;

[[noreturn]] void refuse(llamba_status status, const std::string& sentence) {
  last_status = status;
  last_sentence = sentence;
  throw std::runtime_error(sentence);
}

template <typename... Parts>
[[noreturn]] void refuse(llamba_status status, const char* op, const char* name, const Parts&... parts) {
  std::ostringstream sentence;
  sentence << op << ": " << (name[0] == '*' ? name + 1 : name) << " must ";
  (sentence << ... << parts);
  refuse(status, sentence.str());
}

template <typename Sizes>
std::string tuple_text(const Sizes& sizes) {
  std::ostringstream text;
  text << '(';
  const char* separator = "";
  for (const int64_t size : sizes) {
    text << separator << size;
    separator = ", ";
  }
  text << (sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

const char* dtype_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return torch::headeronly::toString(dtype);
  }
}

std::string device_text(const Tensor& tensor) {
  const torch::stable::Device device = tensor.device();
  if (device.is_cpu()) return "cpu";
  if (device.is_cuda()) return "cuda:" + std::to_string(device.index());
  return "another device";
}

// Whether each dimension steps over all that lie within it; other layouts without a shared element are too odd to allow.
bool elements_are_apart(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    int64_t within = 0;  // the farthest element of the dimensions inside i
    for (size_t j = 0; j < sizes.size(); ++j) {
      if (strides[j] < strides[i] || (strides[j] == strides[i] && j > i)) within += (sizes[j] - 1) * strides[j];
    }
    if (sizes[i] > 1 && strides[i] <= within) return false;
  }
  return true;
}

// The bytes from a tensor's first element to its last. Strides are never negative in torch.
struct Span {
  uintptr_t begin, end;
};
Span span_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  uintptr_t elements = 1;
  for (size_t i = 0; i < sizes.size(); ++i) elements += (sizes[i] - 1) * strides[i];
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  return {begin, begin + elements * tensor.element_size()};
}

// Columns of one matrix: rows at one pitch, of which the tensors take different parts.
bool are_different_columns(const Tensor& a, const Tensor& b) {
  uintptr_t pitch = 0, width[2] = {0, 0};
  const Tensor* const tensors[] = {&a, &b};
  for (int t = 0; t < 2; ++t) {
    const auto sizes = tensors[t]->sizes(), strides = tensors[t]->strides();
    const uintptr_t bytes = tensors[t]->element_size();
    width[t] = bytes;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] <= 1) continue;
      if (i + 1 == sizes.size()) {
        width[t] += (sizes[i] - 1) * strides[i] * bytes;
      } else {
        pitch = std::gcd(pitch, strides[i] * bytes);  // every row starts at a multiple of it
      }
    }
  }
  if (pitch == 0) return false;
  const auto start_a = reinterpret_cast<uintptr_t>(a.const_data_ptr());
  const auto start_b = reinterpret_cast<uintptr_t>(b.const_data_ptr());
  const uintptr_t column = (start_b % pitch + pitch - start_a % pitch) % pitch;  // of b, counted from a's
  return column >= width[0] && column + width[1] <= pitch;
}

// span_a: of a; neither tensor is empty.
bool share_memory(const Tensor& a, const Span& span_a, const Tensor& b) {
  const Span span_b = span_of(b);
  if (span_a.end <= span_b.begin || span_b.end <= span_a.begin) return false;
  return !are_different_columns(a, b);
}

bool are_same(const Tensor& a, const Tensor& b) {
  const auto sizes_a = a.sizes(), sizes_b = b.sizes(), strides_a = a.strides(), strides_b = b.strides();
  if (a.const_data_ptr() != b.const_data_ptr() || a.scalar_type() != b.scalar_type()) return false;
  if (sizes_a.size() != sizes_b.size()) return false;
  for (size_t i = 0; i < sizes_a.size(); ++i) {
    if (sizes_a[i] != sizes_b[i] || (sizes_a[i] > 1 && strides_a[i] != strides_b[i])) return false;
  }
  return true;
}

}  // namespace

void check_shape(const char* op, const char* name, const Tensor& tensor, const char* rule,
                 std::initializer_list<int64_t> sizes) {
  const auto actual = tensor.sizes();
  if (actual.size() == sizes.size() && std::equal(sizes.begin(), sizes.end(), actual.begin())) return;
  refuse(LLAMBA_VALUE_ERROR, op, name, "have shape ", rule, " = ", tuple_text(sizes), "; got ", tuple_text(actual));
}

void check_same_shape(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                      const Tensor& like) {
  const auto actual = tensor.sizes(), expected = like.sizes();
  if (actual.size() == expected.size() && std::equal(actual.begin(), actual.end(), expected.begin())) return;
  refuse(LLAMBA_VALUE_ERROR, op, name, "have the shape of ", like_name, ", ", tuple_text(expected), "; got ",
         tuple_text(actual));
}

void check_dim(const char* op, const char* name, const Tensor& tensor, int64_t least, int64_t most) {
  if (tensor.dim() >= least && tensor.dim() <= most) return;
  const std::string most_text = least == most ? "" : " to " + std::to_string(most);
  refuse(LLAMBA_VALUE_ERROR, op, name, "have ", least, most_text, " dimensions; got shape ",
         tuple_text(tensor.sizes()));
}

void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType dtype) {
  if (tensor.scalar_type() == dtype) return;
  refuse(LLAMBA_TYPE_ERROR, op, name, "be ", dtype_text(dtype), "; got ", dtype_text(tensor.scalar_type()));
}

void check_same_dtype(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                      const Tensor& like) {
  if (tensor.scalar_type() == like.scalar_type()) return;
  refuse(LLAMBA_TYPE_ERROR, op, name, "have the dtype of ", like_name, ", ", dtype_text(like.scalar_type()), "; got ",
         dtype_text(tensor.scalar_type()));
}

void check_same_device(const char* op, const char* name, const Tensor& tensor, const char* like_name,
                       const Tensor& like) {
  if (tensor.device() == like.device()) return;
  refuse(LLAMBA_TYPE_ERROR, op, name, "be on ", device_text(like), " like ", like_name, "; got ", device_text(tensor));
}

void check_stride(const char* op, const char* name, const Tensor& tensor, int64_t dim, int64_t stride) {
  const int64_t axis = dim < 0 ? dim + tensor.dim() : dim;
  if (tensor.size(axis) <= 1 || tensor.stride(axis) == stride) return;
  refuse(LLAMBA_TYPE_ERROR, op, name, "have stride ", stride, " in dimension ", dim, "; got ", tensor.stride(axis));
}

void check_range(const char* op, const char* name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  const std::string most_text = least == most ? "" : " to " + std::to_string(most);
  refuse(LLAMBA_VALUE_ERROR, op, name, "be ", least, most_text, "; got ", value);
}

void check_written(const char* op, const char* name, const Tensor& tensor, const char* other_names,
                   std::initializer_list<AnyTensor> others, bool or_same) {
  if (tensor.numel() == 0) return;
  if (!elements_are_apart(tensor)) {
    refuse(LLAMBA_TYPE_ERROR, op, name, "have strides with which no two elements share memory; got shape ",
           tuple_text(tensor.sizes()), " with strides ", tuple_text(tensor.strides()));
  }
  const Span span = span_of(tensor);
  for (const AnyTensor& other : others) {
    const char* const end = std::strchr(other_names, ',');
    if (other.tensor != nullptr && other.tensor->numel() > 0 && share_memory(tensor, span, *other.tensor) &&
        !(or_same && are_same(tensor, *other.tensor))) {
      const std::string other_name = end == nullptr ? other_names : std::string(other_names, end);
      refuse(LLAMBA_TYPE_ERROR, op, name, or_same ? "be " + other_name + " itself or " : "", "share no memory with ",
             other_name, "; got one that ", or_same ? "overlaps it in part" : "does");
    }
    if (end != nullptr) other_names = end + 2;  // after ", "
  }
}

void check_apart(const char* op, const std::vector<NamedTensor>& tensors) {
  std::vector<Span> spans;
  for (const NamedTensor& named : tensors) {
    spans.push_back(named.tensor->numel() > 0 ? span_of(*named.tensor) : Span{0, 0});
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (spans[i].end <= spans[j].begin || spans[j].end <= spans[i].begin) continue;  // most pairs, quickly
      if (share_memory(*tensors[i].tensor, spans[i], *tensors[j].tensor)) {
        refuse(LLAMBA_TYPE_ERROR, op, tensors[i].name.c_str(), "share no memory with ", tensors[j].name,
               "; got one that does");
      }
    }
  }
}

float check_float(const char* op, const char* name, double value) {
  const float narrow = static_cast<float>(value);
  if ((narrow == 0.0f) == (value == 0.0) && std::isinf(narrow) == std::isinf(value)) return narrow;
  refuse(LLAMBA_VALUE_ERROR, op, name, "be in the range of float32; got ", value);
}

llamba_dtype check_floating(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  if (dtype == ScalarType::Float) return LLAMBA_FLOAT32;
  if (dtype == ScalarType::BFloat16) return LLAMBA_BFLOAT16;
  if (dtype == ScalarType::Half) return LLAMBA_FLOAT16;
  refuse(LLAMBA_TYPE_ERROR, op, name, "be float32, bfloat16 or float16; got ", dtype_text(dtype));
}

HeadRows check_head_rows(const char* op, const char* name, const Tensor& tensor, int64_t most_dims) {
  check_dim(op, name, tensor, 1, most_dims);
  check_stride(op, name, tensor, -1, 1);
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const size_t dims = sizes.size();
  HeadRows rows{1, 1, 1, sizes.back(), 0, 0, 0};
  if (dims >= 2) {
    rows.nheads = sizes[dims - 2];
    rows.stride_head = strides[dims - 2];
  }
  if (dims >= 3) {
    rows.ntokens = sizes[dims - 3];
    rows.stride_token = strides[dims - 3];
  }
  if (dims >= 4) {
    rows.batch = sizes[dims - 4];
    rows.stride_batch = strides[dims - 4];
  }
  return rows;
}

Rows check_rows(const char* op, const char* name, const Tensor& tensor) {
  const HeadRows rows = check_head_rows(op, name, tensor, 3);
  return Rows{rows.ntokens, rows.nheads, rows.width, rows.stride_token, rows.stride_head};
}

void check_status(int status, const char* sentence) {
  if (status != LLAMBA_OK) refuse(static_cast<llamba_status>(status), sentence);
}

}  // namespace llamba

extern "C" {
LLAMBA_API const char* llamba_op_error(void) { return llamba::last_sentence.c_str(); }
LLAMBA_API int llamba_op_status(void) { return llamba::last_status; }
}
