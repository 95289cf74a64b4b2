// A linear window in float32.  No functions: the row loops compiled for newer CPUs include this.
#pragma once

#include <cstdint>

namespace ptxsdk {

// A linear window split for precision: value v contributes clamp(v - base, low, high), with v - base exact.
struct Ramp {
    std::int32_t base;  // integers
    float base_f;       // float32
    float low, high;
};

}  // namespace ptxsdk
