// The _core extension module: one file a binding, listed here.
#include "bindings/module.hpp"

PYBIND11_MODULE(_core, m) {
    m.doc() = "CPU operations of ptxsdk; use them through ptxsdk.ops.";
    ptxsdk::bind_preprocess(m);
    ptxsdk::bind_aggregate(m);
}
