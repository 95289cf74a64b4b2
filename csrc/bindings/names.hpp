// Names of the bindings' string arguments.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <string_view>

#include "ops/aggregate.hpp"
#include "ops/preprocess.hpp"

namespace ptxsdk {

[[noreturn]] inline void refuse(const char* what, std::string_view name, const char* known) {
    throw pybind11::value_error(std::string(what) + " '" + std::string(name) + "' is not one of " + known);
}

inline ScoreMethod score_method(std::string_view name) {
    if (name == "noisy_or") return ScoreMethod::noisy_or;
    if (name == "paper_098") return ScoreMethod::paper_098;
    if (name == "top_k") return ScoreMethod::top_k;
    if (name == "max") return ScoreMethod::max;
    refuse("method", name, "noisy_or, paper_098, top_k, max");
}

inline ScoreSource score_source(std::string_view name) {
    if (name == "patch") return ScoreSource::patch;
    if (name == "mask") return ScoreSource::mask;
    refuse("source", name, "patch, mask");
}

inline Transfer transfer_of(std::string_view name) {
    if (name == "linear") return Transfer::linear;
    if (name == "sigmoid") return Transfer::sigmoid;
    if (name == "table") return Transfer::table;
    refuse("transfer", name, "linear, sigmoid, table");
}

// Throws TypeError: dtypes are types.
inline StoredType stored_type(std::string_view dtype) {
    if (dtype == "uint8") return StoredType::u8;
    if (dtype == "uint16") return StoredType::u16;
    if (dtype == "int16") return StoredType::i16;
    if (dtype == "float32") return StoredType::f32;
    throw pybind11::type_error("source must be native uint8, uint16, int16 or float32, not " +
                               std::string(dtype));
}

inline TensorType tensor_type(std::string_view dtype) {
    if (dtype == "float32") return TensorType::f32;
    if (dtype == "float16") return TensorType::f16;
    throw pybind11::type_error("target must be float32 or float16, not " + std::string(dtype));
}

}  // namespace ptxsdk
