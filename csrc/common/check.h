// One-line errors of the kernels, without the path of the machine that compiled them.
#pragma once

#include <sstream>
#include <stdexcept>

namespace safetyspace {

template <typename... Parts>
inline void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace safetyspace
