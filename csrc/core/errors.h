// Errors a caller can cause are std::invalid_argument; the message names the argument, its value and the remedy.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace pocketformer {

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <typename... Parts>
void require(bool condition, const Parts&... message) {
  if (!condition) throw std::invalid_argument(concat(message...));
}

}  // namespace pocketformer
