// The block algorithms on the host: phases run thread after thread, atomic operations are plain ones.
#pragma once

#include <cstring>
#include <stdexcept>
#include <vector>

#include "ops/block.hpp"

namespace ptxsdk::cuda {

struct HostBlock {
    std::byte* shared;
    int thread_count;

    int threads() const { return thread_count; }

    template <typename Phase>
    void each(Phase phase) const {
        for (int thread = 0; thread < thread_count; ++thread) phase(thread);
    }

    static Vector16 load16(const std::byte* aligned) {
        if (reinterpret_cast<std::uintptr_t>(aligned) % sizeof(Vector16) != 0)
            throw std::logic_error("load16 is not aligned");
        Vector16 loaded;
        std::memcpy(&loaded, aligned, sizeof loaded);
        return loaded;
    }
    static void copy16(std::byte* to, const std::byte* from, int skip, int size) {
        if ((reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to)) % 16 != 0)
            throw std::logic_error("copy16 is not aligned");
        std::memcpy(to + skip, from + skip, static_cast<std::size_t>(size - skip));
    }
    static void copy16(std::byte* to, const std::byte* from) { copy16(to, from, 0, 16); }
    static void await_copies() {}
    template <typename T>
    static T fresh(const T* value) {
        return *value;
    }
    static void publish() {}

    static std::uint32_t fetch_add(std::uint32_t* to, std::uint32_t value) {
        const std::uint32_t before = *to;
        *to += value;
        return before;
    }
    static void add(std::uint64_t* to, std::uint64_t value) { *to += value; }
    static void set_bits(std::uint32_t* to, std::uint32_t bits) { *to |= bits; }
    static std::uint32_t fetch_min(std::uint32_t* to, std::uint32_t value) {
        const std::uint32_t before = *to;
        *to = value < before ? value : before;
        return before;
    }
    static std::uint32_t racing(const std::uint32_t* value) { return *value; }
    static void lower(std::int32_t* to, std::int32_t value) { *to = value < *to ? value : *to; }
    template <typename T>
    static void raise(T* to, T value) {
        *to = value > *to ? value : *to;
    }
};

}  // namespace ptxsdk::cuda
