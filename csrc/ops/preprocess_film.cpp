// preprocess: what is decided on the host, once a film, for either twin.
#include "ops/preprocess_film.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace ptxsdk {
namespace {

// Sums over the area of the largest film (2^26 pixels, a window twice as wide) stay within float32.
constexpr double kLargestBound = 1e30;

// A window too narrow for float32 is a step: its width must not vanish, or the display value is 0 / 0.
Ramp with_width(Ramp ramp) {
    if (!(ramp.high > ramp.low)) ramp.high = std::nextafter(ramp.low, HUGE_VALF);
    return ramp;
}

}  // namespace

Ramp make_ramp(StoredType type, double low, double high) {
    if (type == StoredType::f32) {
        const double base = static_cast<float>(low);
        return with_width(
            {0, static_cast<float>(base), static_cast<float>(low - base), static_cast<float>(high - base)});
    }
    const double lowest = type == StoredType::i16 ? -32768 : 0;
    const double highest = type == StoredType::u8 ? 255 : type == StoredType::i16 ? 32767 : 65535;
    if (high <= lowest) {  // all white
        low = lowest - 2;
        high = lowest - 1;
    } else if (low >= highest) {  // all black
        low = highest + 1;
        high = highest + 2;
    }
    // An integer source minus the base is exact in float32 wherever the window is narrow enough for it to
    // matter.
    constexpr double kLimit = 1 << 30;
    const double base = std::clamp(std::floor(low), -kLimit, kLimit);
    return with_width({static_cast<std::int32_t>(base), 0.0f, static_cast<float>(low - base),
                       static_cast<float>(high - base)});
}

void check_preprocess(StoredType type, int rows, int columns, int target_rows, int target_columns,
                      const Content& content, const PreprocessParameters& parameters) {
    if (rows < 1 || columns < 1) throw std::invalid_argument("the source is empty");
    if (content.x0 < 0 || content.y0 < 0 || content.x0 >= content.x1 || content.y0 >= content.y1 ||
        content.x1 > target_columns || content.y1 > target_rows)
        throw std::invalid_argument("the content is empty or outside the target");
    if (!(parameters.std > 0) || !std::isfinite(parameters.std) || !std::isfinite(parameters.mean))
        throw std::invalid_argument("mean and std must be finite, std positive");
    if (parameters.transfer == Transfer::table) {
        if (parameters.table == nullptr || type == StoredType::f32)
            throw std::invalid_argument("a table serves integer sources only");
    } else if (!(parameters.high > parameters.low) || !std::isfinite(parameters.high - parameters.low)) {
        throw std::invalid_argument("low and high must be finite, low below high");
    } else if (std::max(std::abs(parameters.low), std::abs(parameters.high)) > kLargestBound) {
        throw std::invalid_argument("low and high must lie within 1e30 of 0");
    } else if (parameters.transfer == Transfer::sigmoid && type != StoredType::f32) {
        throw std::invalid_argument("integer sources take a sigmoid as a table");
    }
    if (parameters.threads < 0) throw std::invalid_argument("threads is negative");
}

}  // namespace ptxsdk
