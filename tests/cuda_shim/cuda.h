/* CUDA C++ on a CPU: what the text of our kernels uses of it, as C++ for g++.
 *
 * The threads of a grid run one after another; no kernel waits for its neighbours.
 */
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

#define __global__
#define __device__
#define __launch_bounds__(threads)

struct Index {
    unsigned x;
};
struct alignas(2) uchar2 {
    unsigned char x, y;
};
static thread_local Index blockIdx, threadIdx;

template <typename T> static T min(T a, T b) { return b < a ? b : a; }
template <typename T> static T max(T a, T b) { return a < b ? b : a; }

/* dp4a.u32.s32 */
static inline int __dp4a(unsigned codes, int weights, int sum)
{
    for (int i = 0; i < 4; i++)
        sum += int(uint8_t(codes >> 8 * i)) * int(int8_t(uint32_t(weights) >> 8 * i));
    return sum;
}

/* prmt.b32, without its sign-replicating mode: bytes of b:a, chosen by four nibbles. */
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector)
{
    uint64_t both = uint64_t(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++)
        result |= unsigned(uint8_t(both >> 8 * (selector >> 4 * i & 7))) << 8 * i;
    return result;
}

template <typename... P, std::size_t... I>
static void call(void (*kernel)(P...), void **arguments, std::index_sequence<I...>)
{
    kernel(*static_cast<P *>(arguments[I])...);
}

/* What cuLaunchKernel does; the other way round, so that no thread may rely on earlier ones. */
template <typename... P>
static void launch(void (*kernel)(P...), unsigned blocks, unsigned threads, void **arguments)
{
    for (blockIdx.x = blocks; blockIdx.x-- > 0;)
        for (threadIdx.x = threads; threadIdx.x-- > 0;)
            call(kernel, arguments, std::index_sequence_for<P...>{});
}
