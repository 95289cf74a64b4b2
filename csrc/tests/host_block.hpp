// CUDA thread blocks on the host.  Every thread of a block is a coroutine that runs the whole algorithm, as
// on the device, and hands over at barriers; which of them comes first changes from barrier to barrier.
//
// Built with ThreadSanitizer every thread has a clock of its own, moved on by nothing but what orders threads
// on the device: barriers, `arrive`, and the begin and end of a launch.  So races are reported though nothing
// runs at the same time: of a block's threads in shared memory, of blocks in the device's memory.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "ops/block.hpp"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1  // as GCC says it
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);
#endif

namespace ptxsdk::cuda {

// What ThreadSanitizer is told; without it, nothing.
namespace watch {

using Event = std::array<char, 8>;

#if defined(__SANITIZE_THREAD__)
using Clock = void*;
inline Clock own() { return __tsan_get_current_fiber(); }
inline Clock make() { return __tsan_create_fiber(0); }  // begins with all that its maker has seen
inline void end(Clock clock) { __tsan_destroy_fiber(clock); }
inline void go_on_by(Clock clock) { __tsan_switch_to_fiber(clock, __tsan_switch_to_fiber_no_sync); }
inline void before(Event& event) { __tsan_release(&event); }
inline void after(Event& event) { __tsan_acquire(&event); }
inline void ignore() { AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
inline void heed() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__); }
#else
using Clock = char;
inline Clock own() { return {}; }
inline Clock make() { return {}; }
inline void end(Clock) {}
inline void go_on_by(Clock) {}
inline void before(Event&) {}
inline void after(Event&) {}
inline void ignore() {}
inline void heed() {}
#endif

// Deletes what other clocks may have touched last.
struct Delete {
    template <typename T>
    void operator()(T* object) const {
        ignore();
        delete object;
        heed();
    }
};

// The clocks of a launch.  None ends before all have: another would get its number, and what the first had
// done would count as seen by whoever has seen the second.  ThreadSanitizer has some 8,000.
class Clocks {
  public:
    Clocks() = default;
    Clocks(const Clocks&) = delete;
    ~Clocks() {
        for (const Clock clock : made_) end(clock);
    }
    Clock one_more() { return made_.emplace_back(make()); }

  private:
    std::vector<Clock> made_;
};

}  // namespace watch

// A function on a stack of its own, which goes on from where it paused.
class Coroutine {
  public:
    enum State { paused, ended, failed };

    Coroutine(std::function<void(Coroutine&)> body, watch::Clocks& clocks)
        : body_(std::move(body)), stack_(new char[kStackBytes]), clock_(clocks.one_more()) {
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack_.get();
        context_.uc_stack.ss_size = kStackBytes;
        context_.uc_link = &caller_;
        const auto self = reinterpret_cast<std::uintptr_t>(this);
        makecontext(&context_, reinterpret_cast<void (*)()>(&Coroutine::enter), 2,
                    static_cast<unsigned>(self), static_cast<unsigned>(self >> 32));
    }
    Coroutine(const Coroutine&) = delete;

    State resume() {
        const watch::Clock own = watch::own();
        watch::go_on_by(clock_);
        swapcontext(&caller_, &context_);
        watch::go_on_by(own);
        return state_.load(std::memory_order_acquire);
    }
    void pause() { swapcontext(&context_, &caller_); }
    std::exception_ptr failure() const { return failure_; }

  private:
    static constexpr std::size_t kStackBytes = 64 * 1024;

    static void enter(unsigned low, unsigned high) {
        auto* self = reinterpret_cast<Coroutine*>(std::uintptr_t{high} << 32 | low);
        try {
            self->body_(*self);
            self->state_.store(ended, std::memory_order_relaxed);
        } catch (...) {
            self->failure_ = std::current_exception();
            self->state_.store(failed, std::memory_order_release);
        }
    }

    std::function<void(Coroutine&)> body_;
    std::unique_ptr<char[]> stack_;
    ucontext_t context_, caller_;
    std::atomic<State> state_ = paused;
    std::exception_ptr failure_;
    watch::Clock clock_;
};

// One thread of a block, with what it shares.
struct HostBlock {
    std::byte* shared;
    int thread, thread_count;
    Coroutine& self;
    watch::Event*
        met;  // at barriers; two by turns: who leaves one late has not seen what others did after it
    mutable std::size_t barriers = 0;

    int threads() const { return thread_count; }

    template <typename Phase>
    void each(Phase phase) const {
        phase(thread);
        watch::Event& event = met[barriers++ % 2];
        watch::before(event);
        self.pause();
        watch::after(event);
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
        return std::atomic_ref(*const_cast<T*>(value)).load(std::memory_order_relaxed);
    }
    static std::uint32_t arrive(std::uint32_t* counter) {
        return std::atomic_ref(*counter).fetch_add(1, std::memory_order_acq_rel);
    }

    static std::uint32_t fetch_add(std::uint32_t* to, std::uint32_t value) {
        return std::atomic_ref(*to).fetch_add(value, std::memory_order_relaxed);
    }
    static void add(std::uint64_t* to, std::uint64_t value) {
        std::atomic_ref(*to).fetch_add(value, std::memory_order_relaxed);
    }
    static void set_bits(std::uint32_t* to, std::uint32_t bits) {
        std::atomic_ref(*to).fetch_or(bits, std::memory_order_relaxed);
    }
    static std::uint32_t fetch_min(std::uint32_t* to, std::uint32_t value) {
        return exchanged(to, [&](std::uint32_t old) { return std::min(old, value); });
    }
    static std::uint32_t racing(const std::uint32_t* value) { return fresh(value); }
    static void lower(std::int32_t* to, std::int32_t value) {
        exchanged(to, [&](std::int32_t old) { return std::min(old, value); });
    }
    template <typename T>
    static void raise(T* to, T value) {
        exchanged(to, [&](T old) { return std::max(old, value); });
    }

  private:
    template <typename T, typename Change>
    static T exchanged(T* to, Change change) {
        std::atomic_ref shared(*to);
        T old = shared.load(std::memory_order_relaxed);
        while (!shared.compare_exchange_weak(old, change(old), std::memory_order_relaxed)) {
        }
        return old;
    }
};

using Kernel = std::function<void(const HostBlock&, int index)>;

// The threads of block number `index`, and what they share.
class RunningBlock {
  public:
    RunningBlock(int threads, std::size_t shared_bytes, const Kernel& kernel, int index, watch::Event& ended,
                 watch::Clocks& clocks)
        : shared_(new Vector16[(shared_bytes + 15) / 16]) {
        std::memset(shared_.get(), 0xA5, (shared_bytes + 15) / 16 * 16);  // garbage, as on the device
        for (int thread = 0; thread < threads; ++thread)
            threads_.push_back(std::make_unique<Coroutine>(
                [=, this, &kernel, &ended](Coroutine& self) {
                    auto* shared = reinterpret_cast<std::byte*>(shared_.get());
                    kernel({shared, thread, threads, self, met_}, index);
                    watch::before(ended);
                },
                clocks));
    }

    void run(std::mt19937& random) {
        for (std::size_t ended = 0; ended == 0;) {
            std::shuffle(threads_.begin(), threads_.end(), random);
            for (const auto& thread : threads_) {
                const Coroutine::State state = thread->resume();
                if (state == Coroutine::failed) std::rethrow_exception(thread->failure());
                ended += state == Coroutine::ended;
            }
            if (ended != 0 && ended != threads_.size())
                throw std::logic_error("some threads of a block wait at a barrier that others do not reach");
        }
    }

  private:
    std::unique_ptr<Vector16[]> shared_;
    watch::Event met_[2];
    std::vector<std::unique_ptr<Coroutine>> threads_;
};

// Runs the kernel as every thread of `blocks` blocks, one block after the other, in any order.  Throws what a
// thread has thrown, and where the threads of a block do not meet at the same barriers.
inline void launch(int threads, std::size_t shared_bytes, int blocks, const Kernel& kernel) {
    std::mt19937 random(7);
    std::vector<int> order(static_cast<std::size_t>(blocks));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    watch::Event ended;
    watch::Clocks clocks;
    for (const int index : order)
        std::unique_ptr<RunningBlock, watch::Delete>(
            new RunningBlock(threads, shared_bytes, kernel, index, ended, clocks))
            ->run(random);
    watch::after(ended);  // here it sees what the blocks did; none of them saw it
}

}  // namespace ptxsdk::cuda
