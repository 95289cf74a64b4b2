// The bindings that make up the _core extension module.
#pragma once

#include <pybind11/pybind11.h>

namespace ptxsdk {

void bind_preprocess(pybind11::module_& m);
void bind_aggregate(pybind11::module_& m);

}  // namespace ptxsdk
