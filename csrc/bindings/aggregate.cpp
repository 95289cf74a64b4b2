// Binding of the aggregate op: float32, C-contiguous, no conversion; the GIL is released while it computes.
#include "ops/aggregate.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <string_view>

#include "bindings/module.hpp"
#include "bindings/names.hpp"
#include "ops/aggregate_result.hpp"

namespace py = pybind11;

namespace ptxsdk {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

std::span<const float> values(const Floats& array) {
    // C-contiguous says nothing of where an array begins.
    if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(float) != 0)
        throw py::value_error("the logits are not aligned");
    return {array.data(), static_cast<std::size_t>(array.size())};
}

py::tuple pair(const Point& point) { return py::make_tuple(point.x, point.y); }

py::tuple outline(const MapRegion& region) {
    py::tuple points(region.outline.size());
    for (std::size_t i = 0; i < region.outline.size(); ++i) points[i] = pair(region.outline[i]);
    return points;
}

py::tuple aggregate_arrays(const Floats& patch_logits, const Floats& mask_logits,
                           std::tuple<std::int64_t, std::int64_t> source_shape,
                           std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t> content,
                           std::string_view method, std::string_view source, std::int64_t k, double high,
                           double low, std::int64_t min_area, bool want_outlines) {
    if (mask_logits.ndim() != 2) throw py::value_error("mask_logits must have two dimensions");
    const MaskLogits mask{values(mask_logits), mask_logits.shape(0), mask_logits.shape(1)};
    const FilmGeometry film{std::get<0>(source_shape), std::get<1>(source_shape), std::get<0>(content),
                            std::get<1>(content),      std::get<2>(content),      std::get<3>(content)};
    const AggregateParameters parameters{.method = score_method(method),
                                         .source = score_source(source),
                                         .k = k,
                                         .high = high,
                                         .low = low,
                                         .min_area = min_area,
                                         .want_outlines = want_outlines};
    Aggregation result;
    {
        py::gil_scoped_release release;
        result = aggregate(values(patch_logits), mask, film, parameters);
    }
    py::list regions;
    for (MapRegion& region : result.regions) regions.append(std::move(region));
    return py::make_tuple(result.logit, regions);
}

// Regions and logit of what the CUDA twin wrote; None where it holds fewer records than there are regions.
py::object aggregate_of_result(const py::array_t<std::uint8_t, py::array::c_style>& bytes,
                               std::tuple<std::int64_t, std::int64_t> source_shape,
                               std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t> content,
                               std::string_view method, double low,
                               std::tuple<std::int64_t, std::int64_t> map_shape,
                               const std::optional<Floats>& mask_logits) {
    const FilmGeometry film{std::get<0>(source_shape), std::get<1>(source_shape), std::get<0>(content),
                            std::get<1>(content),      std::get<2>(content),      std::get<3>(content)};
    MaskLogits mask{{}, std::get<0>(map_shape), std::get<1>(map_shape)};
    if (mask_logits) {
        if (mask_logits->size() != mask.rows * mask.columns)
            throw py::value_error("mask_logits are not the map");
        mask.values = values(*mask_logits);
    }
    const std::span<const std::byte> memory{reinterpret_cast<const std::byte*>(bytes.data()),
                                            static_cast<std::size_t>(bytes.size())};
    auto found = cuda::read_result(memory, film, mask, score_method(method), low);
    if (!found) return py::none();
    py::list regions;
    for (MapRegion& region : found->regions) regions.append(std::move(region));
    return py::make_tuple(found->logit, regions);
}

Floats probability_array(const Floats& mask_logits) {
    Floats probability(
        std::vector<py::ssize_t>(mask_logits.shape(), mask_logits.shape() + mask_logits.ndim()));
    const std::span<float> out{probability.mutable_data(), static_cast<std::size_t>(probability.size())};
    py::gil_scoped_release release;
    mask_probability(values(mask_logits), out);
    return probability;
}

}  // namespace

void bind_aggregate(py::module_& m) {
    py::register_exception<NotFinite>(m, "NotFiniteError", PyExc_ArithmeticError);

    py::class_<MapRegion>(m, "MapRegion", "One region, in pixels of the film.")
        .def_property_readonly("box",
                               [](const MapRegion& r) { return py::make_tuple(r.x0, r.y0, r.x1, r.y1); })
        .def_property_readonly("outline", &outline)
        .def_readonly("area_px", &MapRegion::area_px)
        .def_property_readonly("centroid", [](const MapRegion& r) { return pair(r.centroid); })
        .def_property_readonly("peak", [](const MapRegion& r) { return pair(r.peak); })
        .def_readonly("probability", &MapRegion::probability)
        .def_readonly("mean_probability", &MapRegion::mean_probability);

    m.def("aggregate", &aggregate_arrays, py::arg("patch_logits").noconvert(),
          py::arg("mask_logits").noconvert(), py::kw_only(), py::arg("source_shape"), py::arg("content"),
          py::arg("method"), py::arg("source"), py::arg("k"), py::arg("high"), py::arg("low"),
          py::arg("min_area"), py::arg("want_outlines"), "Image logit and regions of a map.");
    m.def("aggregate_of_result", &aggregate_of_result, py::arg("result").noconvert(), py::kw_only(),
          py::arg("source_shape"), py::arg("content"), py::arg("method"), py::arg("low"),
          py::arg("map_shape"), py::arg("mask_logits").noconvert() = py::none(),
          "Image logit and regions that the CUDA twin found, outlined if the map is given; None: too few "
          "records.");
    m.def("mask_probability", &probability_array, py::arg("mask_logits").noconvert(),
          "Sigmoid of float32 logits.");
}

}  // namespace ptxsdk
