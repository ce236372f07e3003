// Run a module that `ptq compile` wrote, with nothing but libc:
//
//     g++ -O2 -I "$(python -c 'import ptq.runtime; print(ptq.runtime.INCLUDE)')" run_module.cpp -ldl -o run_module
//     ./run_module model.so x.f32 y.f32
//
// x.f32 holds any number of samples of the first input, float32; y.f32 gets the first output.
#include <dlfcn.h>
#include <ptq_module.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <thread>
#include <vector>

template <typename Function>
Function *find(void *module, const char *name, Function *)
{
    return reinterpret_cast<Function *>(dlsym(module, name));
}

#define PTQ_FIND(module, name) find(module, #name, &name)

int main(int count, char **words)
{
    if (count != 4) {
        std::cerr << "usage: run_module MODULE.so INPUT.f32 OUTPUT.f32\n";
        return 2;
    }
    void *module = dlopen(words[1], RTLD_NOW);
    if (module == nullptr) {
        std::cerr << dlerror() << '\n';
        return 3;
    }
    std::ifstream file(words[2], std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    std::vector<float> x(bytes.size() / sizeof(float));
    std::memcpy(x.data(), bytes.data(), x.size() * sizeof(float));

    auto calls = static_cast<int32_t>(x.size() / PTQ_FIND(module, ptq_input_size)(0));
    std::vector<float> y(calls * PTQ_FIND(module, ptq_output_size)(0));
    int32_t threads = std::thread::hardware_concurrency();
    auto arena_bytes = threads * PTQ_FIND(module, ptq_arena_bytes)();
    std::unique_ptr<void, decltype(&std::free)> arena(std::aligned_alloc(64, arena_bytes), std::free);

    const void *inputs[] = {x.data()};
    float *outputs[] = {y.data()};
    PTQ_FIND(module, ptq_run)(calls, inputs, outputs, arena.get(), threads, nullptr);
    std::ofstream(words[3], std::ios::binary)
        .write(reinterpret_cast<const char *>(y.data()), y.size() * sizeof(float));
    return 0;
}
