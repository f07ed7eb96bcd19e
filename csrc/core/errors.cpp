#include "core/errors.h"

#include <cstdio>

namespace pocketformer {

Part::Part(Integer value) {
  char* begin = digits_ + sizeof digits_;
  do {
    *--begin = static_cast<char>('0' + value.magnitude % 10);
    value.magnitude /= 10;
  } while (value.magnitude != 0);
  if (value.negative) *--begin = '-';
  text_ = {begin, static_cast<size_t>(digits_ + sizeof digits_ - begin)};
}

Part::Part(double value) {
  const int length = std::snprintf(digits_, sizeof digits_, "%g", value);
  text_ = {digits_, static_cast<size_t>(length)};
}

std::string join(std::initializer_list<Part> parts) {
  std::string text;
  for (const Part& part : parts) text += part.text();
  return text;
}

void refuse(std::initializer_list<Part> message) { throw std::invalid_argument(join(message)); }

}  // namespace pocketformer
