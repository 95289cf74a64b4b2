// What the unit tests without Python share: failures are told, counted, and end in the exit status.
#pragma once

#include <cstdio>

namespace ptxsdk {

inline int failures = 0;

inline void check(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "FAILED %s\n", what);
    ++failures;
}

inline int end_of_tests() {
    std::printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}

}  // namespace ptxsdk
