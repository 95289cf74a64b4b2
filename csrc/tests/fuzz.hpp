// What the fuzz targets share: reading choices out of the fuzzer's bytes, memory without a spare byte.
//
// A target is one function of bytes, as libFuzzer calls it.  Without libFuzzer (GCC, and the sanitizer runs
// of the CI) fuzz_main.cpp plays seeded random bytes and the files named on the command line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace ptxsdk::fuzz {

class Bytes {
  public:
    Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    bool empty() const { return size_ == 0; }

    // The next bytes as a T; zero where they have run out.
    template <typename T>
    T take() {
        T value{};
        const std::size_t count = sizeof(T) < size_ ? sizeof(T) : size_;
        if (count > 0) std::memcpy(&value, data_, count);
        data_ += count;
        size_ -= count;
        return value;
    }

    // An integer of [low, high].
    int within(int low, int high) {
        const auto choices = static_cast<std::uint32_t>(high - low) + 1;
        return low + static_cast<int>(take<std::uint16_t>() % choices);
    }

    bool flag() { return (take<std::uint8_t>() & 1) != 0; }

    // Fills memory; the bytes repeat where they do not suffice.
    void fill(void* to, std::size_t size) {
        auto* out = static_cast<std::uint8_t*>(to);
        for (std::size_t i = 0; i < size; ++i) out[i] = size_ == 0 ? 0 : data_[i % size_];
    }

  private:
    const std::uint8_t* data_;
    std::size_t size_;
};

// Heap memory of exactly `size` bytes that starts `offset` bytes behind an aligned address.
class Exact {
  public:
    Exact(std::size_t size, std::size_t offset) : memory_(new std::byte[size + offset]), offset_(offset) {}
    std::byte* data() { return memory_.get() + offset_; }

  private:
    std::unique_ptr<std::byte[]> memory_;
    std::size_t offset_;
};

inline void expect(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "broken promise: %s\n", what);
    std::abort();
}

}  // namespace ptxsdk::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
