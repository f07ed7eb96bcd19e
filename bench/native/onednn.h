// The peer: oneDNN's matrix product u8 × s8 → f32 with a scale for the activations and one for each channel, its
// weights brought beforehand into the layout that it chooses.
#pragma once

#include <dnnl.hpp>

class OneDnnProduct {
 public:
  OneDnnProduct(int m, int n, int k) {
    using Md = dnnl::memory::desc;
    using Type = dnnl::memory::data_type;
    using Tag = dnnl::memory::format_tag;
    const Md src{{m, k}, Type::u8, Tag::ab}, dst{{m, n}, Type::f32, Tag::ab}, plain{{k, n}, Type::s8, Tag::ab};
    dnnl::primitive_attr attributes;
    attributes.set_scales_mask(DNNL_ARG_SRC, 0);
    attributes.set_scales_mask(DNNL_ARG_WEIGHTS, 1 << 1);
    const dnnl::matmul::primitive_desc chosen(engine_, src, Md{{k, n}, Type::s8, Tag::any}, dst, attributes);
    dnnl::memory weights(plain, engine_), packed(chosen.weights_desc(), engine_);
    auto* values = static_cast<int8_t*>(weights.get_data_handle());
    for (size_t i = 0; i < static_cast<size_t>(k) * n; ++i) values[i] = static_cast<int8_t>(i * 7919 % 255 - 127);
    dnnl::reorder(weights, packed).execute(stream_, weights, packed);
    stream_.wait();

    const Md one{{1}, Type::f32, Tag::a}, channels{{n}, Type::f32, Tag::a};
    dnnl::memory in(src, engine_), out(dst, engine_), in_scale(one, engine_), scales(channels, engine_);
    auto* bytes = static_cast<uint8_t*>(in.get_data_handle());
    for (size_t i = 0; i < static_cast<size_t>(m) * k; ++i) bytes[i] = static_cast<uint8_t>(i * 31 % 255);
    static_cast<float*>(in_scale.get_data_handle())[0] = 0.01f;
    std::fill_n(static_cast<float*>(scales.get_data_handle()), n, 0.01f);
    product_ = dnnl::matmul(chosen);
    implementation_ = chosen.impl_info_str();
    arguments_ = {{DNNL_ARG_SRC, in},
                  {DNNL_ARG_WEIGHTS, packed},
                  {DNNL_ARG_DST, out},
                  {DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC, in_scale},
                  {DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, scales}};
  }

  void operator()() {
    product_.execute(stream_, arguments_);
    stream_.wait();
  }

  const std::string& implementation() const { return implementation_; }

 private:
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  dnnl::matmul product_;
  std::string implementation_;
  std::unordered_map<int, dnnl::memory> arguments_;
};
