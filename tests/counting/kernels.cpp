// Kernels as extensions have them: they take the addresses of tensors, and PyTorch knows nothing of what they do.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/utils/pybind.h>

static void scale(const float* from, float* to, int64_t length, int64_t times) {
  for (int64_t i = 0; i < length; i++) {
    to[i] = from[i];
    for (int64_t k = 0; k < times; k++) to[i] = to[i] * 1.5f + 1.0f;
  }
}

static at::Tensor made(at::Tensor x, int64_t times, bool of_zeros) {
  auto out = of_zeros ? at::zeros_like(x) : at::empty_like(x);
  scale(x.data_ptr<float>(), out.data_ptr<float>(), x.numel(), times);
  return out;
}

static void into(at::Tensor x, at::Tensor out, int64_t times) {
  scale(x.data_ptr<float>(), out.data_ptr<float>(), x.numel(), times);
}

static at::Tensor wrapped(at::Tensor x, int64_t times) {
  auto* data = new float[x.numel()];
  scale(x.data_ptr<float>(), data, x.numel(), times);
  return at::from_blob(data, x.sizes(), [](void* p) { delete[] static_cast<float*>(p); });
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("made", &made);
  m.def("into", &into);
  m.def("wrapped", &wrapped);
}
