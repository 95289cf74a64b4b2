// Binding of preprocess: numpy arrays in and out, the GIL released during the pass.
#include "ops/preprocess.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>

#include "bindings/module.hpp"
#include "bindings/names.hpp"

namespace py = pybind11;

namespace ptxsdk {
namespace {

// Foreign byte orders keep their mark, e.g. ">u2", and so are no known name.
std::string name_of(const py::dtype& dtype) { return py::str(dtype).cast<std::string>(); }

Isa isa_of(const std::string& name) {
    if (name == "best") return Isa::best;
    if (name == "baseline") return Isa::baseline;
    if (name == "x86-64-v3") return Isa::x86_64_v3;
    throw py::value_error("unknown instruction set " + name);
}

std::string name_of(Isa isa) {
    switch (isa) {
        case Isa::x86_64_v3:
            return "x86-64-v3";
        case Isa::baseline:
            return "baseline";
        case Isa::best:
            break;
    }
    return "best";
}

bool preprocess_into(const py::array& target, const py::array& source, std::tuple<int, int, int, int> content,
                     const std::string& transfer, double low, double high,
                     const std::optional<py::array_t<float, py::array::c_style>>& table, bool invert,
                     float mean, float std, int threads, const std::string& isa) {
    if (source.ndim() != 2) throw py::value_error("source must have two dimensions");
    if (target.ndim() != 2) throw py::value_error("target must have two dimensions");
    if (!target.writeable()) throw py::value_error("target is read-only");
    if (target.strides(1) != target.itemsize()) throw py::value_error("target rows must be contiguous");
    constexpr py::ssize_t kSide = 1 << 20;
    for (int axis = 0; axis < 2; ++axis)
        if (source.shape(axis) > kSide || target.shape(axis) > kSide)
            throw py::value_error("a side exceeds 2^20");

    const SourceImage image{static_cast<const std::byte*>(source.data()),
                            stored_type(name_of(source.dtype())),
                            static_cast<int>(source.shape(0)),
                            static_cast<int>(source.shape(1)),
                            source.strides(0),
                            source.strides(1)};
    const TargetTensor tensor{static_cast<std::byte*>(const_cast<void*>(target.data())),
                              tensor_type(name_of(target.dtype())), static_cast<int>(target.shape(0)),
                              static_cast<int>(target.shape(1)), target.strides(0)};
    PreprocessParameters parameters;
    parameters.low = low;
    parameters.high = high;
    parameters.invert = invert;
    parameters.mean = mean;
    parameters.std = std;
    parameters.threads = threads;
    parameters.isa = isa_of(isa);
    parameters.transfer = transfer_of(transfer);
    if (parameters.transfer == Transfer::table) {
        const py::ssize_t entries = image.type == StoredType::u8 ? 256 : 65536;
        if (!table || table->ndim() != 1 || table->size() != entries)
            throw py::value_error("table must hold one float32 for every value of the source's type");
        if (reinterpret_cast<std::uintptr_t>(table->data()) % alignof(float) != 0)
            throw py::value_error("table is not aligned");
        parameters.table = table->data();
    }
    const auto [x0, y0, x1, y1] = content;
    py::gil_scoped_release release;
    return preprocess(image, tensor, {x0, y0, x1, y1}, parameters);
}

}  // namespace

void bind_preprocess(py::module_& m) {
    m.def("preprocess_into", &preprocess_into, py::arg("target"), py::arg("source"), py::kw_only(),
          py::arg("content"), py::arg("transfer"), py::arg("low") = 0.0, py::arg("high") = 1.0,
          py::arg("table").noconvert() = py::none(), py::arg("invert") = false, py::arg("mean") = 0.0f,
          py::arg("std") = 1.0f, py::arg("threads") = 0, py::arg("isa") = "best",
          "Fill target with the preprocessed source; False if a float source is not finite.");
    m.def(
        "usable_isas",
        [] {
            std::vector<std::string> names;
            for (const Isa isa : usable_isas()) names.push_back(name_of(isa));
            return names;
        },
        "Instruction sets compiled in that this CPU runs, best last.");
}

}  // namespace ptxsdk
