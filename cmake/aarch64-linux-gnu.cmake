# Debian's cross compiler to 64-bit ARM (package g++-aarch64-linux-gnu), its baseline ARMv8-A: wheels travel.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

# The interpreter found runs here, not there: pybind11 must not ask it for the module's suffix.
set(PYBIND11_USE_CROSSCOMPILING ON)

# nvcc would need NVIDIA's libraries for that processor; units with a GPU build from source, or natively.
set(PTXSDK_CUDA OFF CACHE BOOL "" FORCE)
