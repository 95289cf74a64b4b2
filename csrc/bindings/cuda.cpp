// The _cuda extension module: launches on addresses that ptxsdk.ops has checked.
#include "ops/cuda.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <cstring>
#include <string_view>

#include "bindings/names.hpp"
#include "ops/aggregate_block.hpp"
#include "ops/aggregate_regions.hpp"
#include "ops/preprocess_block.hpp"

namespace py = pybind11;

namespace ptxsdk::cuda {
namespace {

using Address = std::uintptr_t;

template <typename T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

Stream stream_of(Address handle) { return pointer<void>(handle); }

// A writable array of bytes in host memory.
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

std::int64_t pack_film(Bytes& into, Address data, std::string_view type, std::int32_t rows,
                       std::int32_t columns, std::int64_t pitch, std::tuple<int, int, int, int> content,
                       int target_rows, int target_columns, std::string_view transfer, double low,
                       double high, Address table, bool invert, float mean, float std,
                       std::int32_t sample_step) {
    if (into.size() != static_cast<py::ssize_t>(sizeof(Film)))
        throw py::value_error("not the size of a film");
    const auto [x0, y0, x1, y1] = content;
    const PreprocessParameters parameters{.transfer = transfer_of(transfer),
                                          .low = low,
                                          .high = high,
                                          .table = pointer<const float>(table),
                                          .invert = invert,
                                          .mean = mean,
                                          .std = std};
    const Film film = make_film({pointer<const std::byte>(data), stored_type(type), rows, columns, pitch,
                                 static_cast<std::ptrdiff_t>(size_of(stored_type(type)))},
                                {x0, y0, x1, y1}, target_rows, target_columns, parameters, sample_step);
    std::memcpy(into.mutable_data(), &film, sizeof film);
    return tile_source_columns(columns, film.content);
}

void preprocess_films(Address films, int count, std::int64_t widest_tile, Address target,
                      std::string_view target_type, int rows, int columns, Address sample,
                      std::int32_t sample_capacity, Address not_finite, Address stream) {
    if (count < 1 || rows < 1 || columns < 1 || rows > kLongestTarget || columns > kLongestTarget)
        throw py::value_error("nothing to make");
    if (widest_tile < 1 || widest_tile > kWidestTile)
        throw py::value_error("the film is too wide for its target");
    const PreprocessTarget to{
        pointer<void>(target), tensor_type(target_type),          rows, columns, pointer<float>(sample),
        sample_capacity,       pointer<std::uint32_t>(not_finite)};
    py::gil_scoped_release release;
    preprocess(pointer<const Film>(films), count, static_cast<int>(widest_tile), to, stream_of(stream));
}

void aggregate_films(Address films, int count, Address patch, std::string_view patch_type,
                     std::int32_t patches, Address mask, std::string_view mask_type, std::int32_t rows,
                     std::int32_t columns, std::string_view method, std::string_view source, std::int64_t k,
                     double high, double low, std::int64_t min_area, Address scratch, Address results,
                     std::size_t film_results, Address stream) {
    if (rows > kMostMapRows || columns > kMostMapColumns)
        throw py::value_error("the map exceeds 4096 x 1024");
    const AggregateParameters parameters{.method = score_method(method),
                                         .source = score_source(source),
                                         .k = k,
                                         .high = high,
                                         .low = low,
                                         .min_area = min_area};
    check_aggregate(patches, rows, columns, {1, 1, 0, 0, columns, rows}, parameters);
    if (count < 1 || film_results < sizeof(AggregateResult) || film_results % alignof(AggregateResult) != 0)
        throw py::value_error("results are too small");
    const AggregateInput input{{pointer<const void>(patch), tensor_type(patch_type) == TensorType::f16},
                               {pointer<const void>(mask), tensor_type(mask_type) == TensorType::f16},
                               patches,
                               rows,
                               columns};
    py::gil_scoped_release release;
    aggregate(pointer<const Film>(films), count, input, make_rules(parameters), pointer<std::byte>(scratch),
              pointer<std::byte>(results), film_results, stream_of(stream));
}

// Rows of a film in host memory to rows `pitch` bytes apart in page-locked memory, and, where device is not
// 0, on to the device.  Each part is under way while the next is being copied.
void upload(Address device, Address staging, const py::array& pixels, std::size_t pitch, Address stream) {
    if (pixels.ndim() != 2) throw py::value_error("pixels must have two dimensions");
    const auto size = static_cast<std::size_t>(pixels.itemsize());
    const auto rows = static_cast<std::size_t>(pixels.shape(0)),
               columns = static_cast<std::size_t>(pixels.shape(1));
    if (columns * size > pitch) throw py::value_error("pitch is less than a row");
    const py::ssize_t row_stride = pixels.strides(0), column_stride = pixels.strides(1);
    const auto* from = static_cast<const std::byte*>(pixels.data());
    auto* to = pointer<std::byte>(staging);
    constexpr std::size_t part = 1 << 20;
    const std::size_t part_rows = std::max<std::size_t>(1, part / pitch);
    py::gil_scoped_release release;
    for (std::size_t begin = 0; begin < rows; begin += part_rows) {
        const std::size_t end = std::min(rows, begin + part_rows);
        for (std::size_t row = begin; row < end; ++row) {
            const std::byte* source = from + static_cast<py::ssize_t>(row) * row_stride;
            if (column_stride == static_cast<py::ssize_t>(size)) {
                std::memcpy(to + row * pitch, source, columns * size);
            } else {
                for (std::size_t column = 0; column < columns; ++column)
                    std::memcpy(to + row * pitch + column * size,
                                source + static_cast<py::ssize_t>(column) * column_stride, size);
            }
        }
        if (device != 0)
            copy(pointer<std::byte>(device) + begin * pitch, to + begin * pitch, (end - begin) * pitch,
                 stream_of(stream));
    }
}

}  // namespace
}  // namespace ptxsdk::cuda

PYBIND11_MODULE(_cuda, m) {
    using namespace ptxsdk::cuda;
    m.doc() = "CUDA operations of ptxsdk on addresses; use them through ptxsdk.ops.";
    py::register_exception<CudaError>(m, "CudaError", PyExc_RuntimeError);
    m.attr("WIDEST_TILE") = kWidestTile;
    m.attr("LONGEST_SIDE") = kLongestSource;
    m.attr("MOST_RECORDS") = kMostRegions;
    m.attr("FILM_BYTES") = sizeof(Film);
    m.attr("RESULT_BYTES") = sizeof(AggregateResult);
    m.attr("RECORD_BYTES") = sizeof(RegionRecord);
    m.def("pack_film", &pack_film, py::arg("into").noconvert(), py::kw_only(), py::arg("data"),
          py::arg("type"), py::arg("rows"), py::arg("columns"), py::arg("pitch"), py::arg("content"),
          py::arg("target_rows"), py::arg("target_columns"), py::arg("transfer"), py::arg("low") = 0.0,
          py::arg("high") = 1.0, py::arg("table") = 0, py::arg("invert") = false, py::arg("mean") = 0.0f,
          py::arg("std") = 1.0f, py::arg("sample_step") = 0,
          "Describe a film; returns the source columns of its widest tile.");
    m.def("preprocess", &preprocess_films, py::kw_only(), py::arg("films"), py::arg("count"),
          py::arg("widest_tile"), py::arg("target"), py::arg("target_type"), py::arg("rows"),
          py::arg("columns"), py::arg("sample") = 0, py::arg("sample_capacity") = 0, py::arg("not_finite"),
          py::arg("stream"), "Launch preprocess for films described in device memory.");
    m.def(
        "aggregate_scratch_bytes",
        [](std::int32_t rows, std::int32_t columns) { return ScratchLayout(rows, columns).size; },
        py::arg("rows"), py::arg("columns"), "Scratch memory of one film, to be zeroed once.");
    m.def("aggregate", &aggregate_films, py::kw_only(), py::arg("films"), py::arg("count"), py::arg("patch"),
          py::arg("patch_type"), py::arg("patches"), py::arg("mask"), py::arg("mask_type"), py::arg("rows"),
          py::arg("columns"), py::arg("method"), py::arg("source"), py::arg("k"), py::arg("high"),
          py::arg("low"), py::arg("min_area"), py::arg("scratch"), py::arg("results"),
          py::arg("film_results"), py::arg("stream"),
          "Launch aggregate; `_core.aggregate_of_result` reads the results.");
    m.def("upload", &upload, py::kw_only(), py::arg("device"), py::arg("staging"), py::arg("pixels"),
          py::arg("pitch"), py::arg("stream"), "Copy a film to page-locked memory and on to the device.");
    m.def(
        "copy",
        [](Address to, Address from, std::size_t size, Address stream) {
            py::gil_scoped_release release;
            copy(pointer<std::byte>(to), pointer<const std::byte>(from), size, stream_of(stream));
        },
        py::kw_only(), py::arg("to"), py::arg("source"), py::arg("size"), py::arg("stream"),
        "Copy asynchronously.");
    m.def(
        "zero",
        [](Address to, std::size_t size, Address stream) {
            py::gil_scoped_release release;
            zero(pointer<std::byte>(to), size, stream_of(stream));
        },
        py::kw_only(), py::arg("to"), py::arg("size"), py::arg("stream"), "Fill with zeros asynchronously.");
    m.def(
        "wait",
        [](Address stream, double seconds) {
            py::gil_scoped_release release;
            return wait(stream_of(stream), seconds);
        },
        py::kw_only(), py::arg("stream"), py::arg("seconds"),
        "Wait for a stream; False when it takes longer.");
}
