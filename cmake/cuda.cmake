# The _cuda extension module: machine code for every architecture this compiler knows of those we serve, and PTX of the
# newest for those to come.  -DCMAKE_CUDA_ARCHITECTURES=native builds for the GPU at hand only.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known OUTPUT_STRIP_TRAILING_WHITESPACE)
  foreach(architecture 75 80 86 87 89 90 100 110 120)
    if(known MATCHES "sm_${architecture}([^0-9a-z]|$)")
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${architecture}-real)
      set(newest ${architecture})
    endif()
  endforeach()
  list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest}-virtual)
endif()
enable_language(CUDA)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know it of this compiler
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
endif()

pybind11_add_module(_cuda NO_EXTRAS
  csrc/bindings/cuda.cpp
  csrc/ops/preprocess.cu
  csrc/ops/aggregate.cu
  csrc/ops/transfer.cu)
target_link_libraries(_cuda PRIVATE ptxsdk_ops)
target_include_directories(_cuda PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_compile_options(_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic>
  # Intermediate files beside the objects have the same names in every build, and so the same bytes come out.
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr --objdir-as-tempdir -Werror=all-warnings -Xcompiler=-Wall,-Wextra>)
target_link_options(_cuda PRIVATE "LINKER:--version-script=${PROJECT_SOURCE_DIR}/csrc/bindings/cuda.map" -s)
set_target_properties(_cuda PROPERTIES
  CUDA_STANDARD 20
  CUDA_STANDARD_REQUIRED ON
  CUDA_EXTENSIONS OFF
  LINK_DEPENDS "${PROJECT_SOURCE_DIR}/csrc/bindings/cuda.map")
install(TARGETS _cuda LIBRARY DESTINATION ptxsdk)
