// Errors a caller can cause are std::invalid_argument; the message names the argument, its value and the remedy.
// (Without the streams of the C++ library: linked into a wheel, they and their locales would weigh as much as a third
// of the kernels.)
#pragma once

#include <concepts>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>

namespace pocketformer {

// A piece of a message: text or a number. Other things have a text().
class Part {
 public:
  Part(std::string_view text) : text_(text) {}
  Part(const std::string& text) : text_(text) {}
  Part(const char* text) : text_(text) {}
  template <std::signed_integral T>
  Part(T value) : Part(Integer{value < 0, value < 0 ? 0 - static_cast<unsigned long long>(value) : value}) {}
  template <std::unsigned_integral T>
  Part(T value) : Part(Integer{false, value}) {}
  Part(double value);
  Part(const Part&) = delete;  // text_ may point into digits_
  Part& operator=(const Part&) = delete;

  std::string_view text() const { return text_; }

 private:
  struct Integer {
    bool negative;
    unsigned long long magnitude;
  };
  Part(Integer value);

  char digits_[24];
  std::string_view text_;
};

std::string join(std::initializer_list<Part> parts);
[[noreturn]] void refuse(std::initializer_list<Part> message);

// What text() gives is made only where the message is.
template <typename T>
decltype(auto) said(const T& piece) {
  if constexpr (requires { piece.text(); }) {
    return piece.text();
  } else {
    return (piece);
  }
}

template <typename... Parts>
std::string concat(const Parts&... parts) {
  return join({Part(said(parts))...});
}

template <typename... Parts>
void require(bool condition, const Parts&... message) {
  if (!condition) refuse({Part(said(message))...});
}

}  // namespace pocketformer
