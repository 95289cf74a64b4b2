// Runs a fuzz target without libFuzzer: `target RUNS SEED` plays seeded random bytes, `target FILE...` plays
// files.
#include <cctype>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz.hpp"

int main(int count, char** arguments) {
    if (count == 3 && std::isdigit(static_cast<unsigned char>(arguments[1][0]))) {
        const long runs = std::atol(arguments[1]);
        std::mt19937_64 random(std::strtoull(arguments[2], nullptr, 10));
        std::vector<std::uint8_t> bytes;
        for (long run = 0; run < runs; ++run) {
            bytes.resize(random() % 600);
            for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
            LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
        }
        std::printf("%ld runs\n", runs);
        return 0;
    }
    for (int i = 1; i < count; ++i) {
        std::ifstream file(arguments[i], std::ios::binary);
        const std::vector<char> content{std::istreambuf_iterator<char>(file), {}};
        LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(content.data()), content.size());
    }
    return 0;
}
