/* CUDA C++ on a CPU: what the text of our kernels uses of it, as C++ for g++.
 *
 * The threads of a grid run one after another. Where a kernel multiplies on tensor cores its threads
 * are fibres, and those of a warp meet at every product.
 */
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <ucontext.h>
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

/* mma.m16n8k32 of unsigned codes and signed weights: which thread has what, by the PTX manual. */
struct Warp {
    enum { SIZE = 32, STACK_BYTES = 1 << 16 };
    struct Lane {
        ucontext_t context;
        bool done, waiting;
        int *sums;
        uint32_t a[4], b[2];
        alignas(16) char stack[STACK_BYTES];
    };
    ucontext_t scheduler;
    Lane lanes[SIZE];
    std::function<void()> body;

    static int byte(uint32_t word, int i) { return uint8_t(word >> 8 * i); }

    void multiply()
    {
        for (int lane = 0; lane < SIZE; lane++)
            for (int e = 0; e < 4; e++)
                for (int k = 0; k < 32; k++) {
                    /* Element (row, column) of the result is thread `lane`'s sum `e`. */
                    int row = lane / 4 + 8 * (e / 2), column = lane % 4 * 2 + e % 2;
                    int quad = k % 16 / 4, half = k / 16;
                    const Lane &codes = lanes[row % 8 * 4 + quad], &factors = lanes[column * 4 + quad];
                    int code = byte(codes.a[2 * half + row / 8], k % 4);
                    lanes[lane].sums[e] += code * int8_t(byte(factors.b[half], k % 4));
                }
    }

    void run(unsigned first);
};
static Warp warp;

static inline void ptq_mma(int *sums, unsigned a0, unsigned a1, unsigned a2, unsigned a3, int b0,
                           int b1)
{
    Warp::Lane &lane = warp.lanes[threadIdx.x % Warp::SIZE];
    lane.sums = sums;
    uint32_t a[] = {a0, a1, a2, a3}, b[] = {uint32_t(b0), uint32_t(b1)};
    for (int i = 0; i < 4; i++)
        lane.a[i] = a[i];
    for (int i = 0; i < 2; i++)
        lane.b[i] = b[i];
    lane.waiting = true;
    swapcontext(&lane.context, &warp.scheduler);
}

static void run_lane()
{
    Warp::Lane &lane = warp.lanes[threadIdx.x % Warp::SIZE];
    warp.body();
    lane.done = true;
    swapcontext(&lane.context, &warp.scheduler);
}

/* From one meeting to the next until all are done; a thread that stays away stops the program. */
inline void Warp::run(unsigned first)
{
    for (Lane &lane : lanes) {
        lane.done = false;
        getcontext(&lane.context);
        lane.context.uc_stack.ss_sp = lane.stack;
        lane.context.uc_stack.ss_size = STACK_BYTES;
        lane.context.uc_link = nullptr;
        makecontext(&lane.context, run_lane, 0);
    }
    for (int done = 0; done < SIZE;) {
        int waiting = 0;
        done = 0;
        for (int i = SIZE; i-- > 0;) {
            lanes[i].waiting = false;
            threadIdx.x = first + i;
            swapcontext(&scheduler, &lanes[i].context);
            waiting += lanes[i].waiting;
            done += lanes[i].done;
        }
        if (waiting != 0 && waiting != SIZE)
            abort();
        if (waiting == SIZE)
            multiply();
    }
}

template <typename... P>
static void launch_warps(void (*kernel)(P...), unsigned blocks, unsigned threads, void **arguments)
{
    if (threads % Warp::SIZE != 0)
        abort();
    warp.body = [=] { call(kernel, arguments, std::index_sequence_for<P...>{}); };
    for (blockIdx.x = blocks; blockIdx.x-- > 0;)
        for (unsigned first = 0; first < threads; first += Warp::SIZE)
            warp.run(first);
}
