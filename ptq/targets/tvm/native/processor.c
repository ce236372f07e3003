/* What a module's code wants of the processor, so that another one gives an error, not a signal. */
#include "contents.h"
#include "ptq_module.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

static const char *const needed[] = {PTQ_NEEDED_FEATURES NULL};

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>

enum { EAX, EBX, ECX, EDX };
enum { YMM = 0x6, ZMM = 0xe6, TILES = 0x60000, TILE_DATA = 18, REQUEST_PERMISSION = 0x1023 };

/* LLVM's name; where cpuid says it; registers that the system has to keep for it. */
static const struct {
    const char *name;
    unsigned leaf, part, word, bit, state;
} features[] = {
    {"avx", 1, 0, ECX, 28, YMM},         {"fma", 1, 0, ECX, 12, YMM},
    {"f16c", 1, 0, ECX, 29, YMM},        {"avx2", 7, 0, EBX, 5, YMM},
    {"bmi", 7, 0, EBX, 3, 0},            {"bmi2", 7, 0, EBX, 8, 0},
    {"avx512f", 7, 0, EBX, 16, ZMM},     {"avx512dq", 7, 0, EBX, 17, ZMM},
    {"avx512ifma", 7, 0, EBX, 21, ZMM},  {"avx512cd", 7, 0, EBX, 28, ZMM},
    {"avx512bw", 7, 0, EBX, 30, ZMM},    {"avx512vl", 7, 0, EBX, 31, ZMM},
    {"avx512vbmi", 7, 0, ECX, 1, ZMM},   {"avx512vbmi2", 7, 0, ECX, 6, ZMM},
    {"gfni", 7, 0, ECX, 8, 0},           {"vaes", 7, 0, ECX, 9, YMM},
    {"avx512vnni", 7, 0, ECX, 11, ZMM},  {"avx512bitalg", 7, 0, ECX, 12, ZMM},
    {"avx512vpopcntdq", 7, 0, ECX, 14, ZMM}, {"avx512fp16", 7, 0, EDX, 23, ZMM},
    {"amx-tile", 7, 0, EDX, 24, TILES},  {"amx-int8", 7, 0, EDX, 25, TILES},
    {"avxvnni", 7, 1, EAX, 4, YMM},      {"avx512bf16", 7, 1, EAX, 5, ZMM},
    {"amx-fp16", 7, 1, EAX, 21, TILES},  {"amx-complex", 7, 1, EDX, 8, TILES},
};

static unsigned kept_states(void)
{
    unsigned words[4] = {0};
    if (!__get_cpuid(1, &words[EAX], &words[EBX], &words[ECX], &words[EDX]) ||
        !(words[ECX] >> 27 & 1))
        return 0;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* True if it is there; Linux gives a process the tiles of AMX only when it asks for them. */
static bool has(const char *name)
{
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        if (strcmp(features[i].name, name) != 0)
            continue;
        unsigned words[4] = {0};
        __get_cpuid_count(features[i].leaf, features[i].part, &words[EAX], &words[EBX],
                          &words[ECX], &words[EDX]);
        if (!(words[features[i].word] >> features[i].bit & 1) ||
            (kept_states() & features[i].state) != features[i].state)
            return false;
        return features[i].state != TILES ||
               syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    }
    return true; /* one that no code of ours is generated from */
}
#elif defined(__aarch64__)
#include <sys/auxv.h>

static bool has(const char *name)
{
    return strcmp(name, "dotprod") != 0 || (getauxval(AT_HWCAP) >> 20 & 1);
}
#else
static bool has(const char *name)
{
    (void)name;
    return true;
}
#endif

int32_t ptq_check_processor(void)
{
    static _Atomic bool fine;
    if (atomic_load_explicit(&fine, memory_order_relaxed))
        return 0;
    for (size_t i = 0; needed[i] != NULL; i++)
        if (!has(needed[i])) {
            ptq_set_error("this processor, or the system on it, has no %s", needed[i]);
            return PTQ_NO_PROCESSOR;
        }
    atomic_store_explicit(&fine, true, memory_order_relaxed);
    return 0;
}
