/* What parallel.c promises, as lines that test_parallel.py reads. Time passes when this file says
 * so, so that a machine with other work keeps the promises as well. */
#include "clock.h"
#include "parallel.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHUNKS = 64, MICROSECOND = 1000, MILLISECOND = 1000000 };

static _Atomic int64_t now = MILLISECOND;
static _Atomic int32_t looks; /* by the caller, at the clock */
static _Thread_local bool is_caller;

int64_t ptq_nanoseconds(void)
{
    if (is_caller)
        atomic_fetch_add(&looks, 1);
    return atomic_load(&now);
}

static void pass(int64_t nanoseconds) { atomic_fetch_add(&now, nanoseconds); }

/* What does not come within half a minute is waited for no more. */
static void wait_for(_Atomic int32_t *count, int32_t least)
{
    static _Atomic int32_t waits;
    while (atomic_load(count) < least && atomic_fetch_add(&waits, 1) < 300000)
        usleep(100);
}

static _Atomic int32_t counts[CHUNKS];
static _Atomic int32_t most_chunks, helped;

static void count(int32_t chunk, int32_t chunks, int32_t participant)
{
    atomic_store(&most_chunks, chunks);
    for (int32_t i = CHUNKS * chunk / chunks; i < CHUNKS * (chunk + 1) / chunks; i++)
        atomic_fetch_add(&counts[i], 1);
    if (participant > 0)
        atomic_fetch_add(&helped, 1);
}

static void shared(void *context, int32_t chunk, int32_t chunks, int32_t participant)
{
    (void)context;
    count(chunk, chunks, participant);
    if (participant == 0 && chunks > 1)
        usleep(100); /* leaves some for the helpers */
    pass(2 * MICROSECOND);
}

static void only_with_help(void *context, int32_t chunk, int32_t chunks, int32_t participant)
{
    (void)context;
    count(chunk, chunks, participant);
    if (participant == 0 && chunks > 1)
        wait_for(&helped, 1);
}

/* The helper is held up in its first chunk, until the caller has done the rest and waits. */
static void held_up(void *context, int32_t chunk, int32_t chunks, int32_t participant)
{
    static _Atomic int32_t by_caller;
    (void)context;
    count(chunk, chunks, participant);
    if (participant > 0) {
        wait_for(&by_caller, chunks - 1);
        wait_for(&looks, atomic_load(&looks) + 2);
        pass(20 * MILLISECOND);
    } else {
        wait_for(&helped, 1);
        pass(10 * MICROSECOND);
        atomic_fetch_add(&by_caller, 1);
    }
}

/* Loops whose time does not depend on who comes; too short for a stall. */
typedef struct {
    int64_t alone, chunk; /* nanoseconds */
} duration;

static void takes(void *context, int32_t chunk, int32_t chunks, int32_t participant)
{
    const duration *taken = context;
    count(chunk, chunks, participant);
    pass(chunks == 1 ? taken->alone : taken->chunk);
}

static int32_t chunks_at_last(duration taken)
{
    ptq_record record = {0};
    for (int i = 0; i < 20; i++)
        ptq_parallel_or_alone(takes, &taken, 4, 2, &record);
    return most_chunks;
}

/* Whether every chunk was done once a loop. */
static bool loops(ptq_part part, int number, int32_t threads)
{
    memset((void *)counts, 0, sizeof counts);
    atomic_store(&helped, 0);
    for (int i = 0; i < number; i++)
        ptq_parallel(part, NULL, CHUNKS, threads);
    for (int i = 0; i < CHUNKS; i++)
        if (counts[i] != number)
            return false;
    return true;
}

static void report(const char *promise, bool kept) { printf("%s %d\n", promise, kept); }

int main(void)
{
    is_caller = true;
    report("alone", loops(shared, 3, 1) && most_chunks == 1);
    report("once", loops(shared, 50, 3));
    report("helped", loops(only_with_help, 1, 3) && helped > 0);

    pass(MILLISECOND);
    usleep(100000); /* they sleep by now */
    report("woken", loops(only_with_help, 1, 3) && helped > 0);

    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(loops(only_with_help, 1, 3) && helped > 0 ? 0 : 1);
    int status;
    waitpid(child, &status, 0);
    report("forked", status == 0);

    report("alone_if_faster", chunks_at_last((duration){500, 1000}) == 1);
    report("together_if_faster", chunks_at_last((duration){8000, 1000}) == 4);

    bool once = loops(held_up, 1, 2) && most_chunks == CHUNKS;
    report("backs_off", once && loops(shared, 1, 2) && most_chunks == 1);
    pass(16 * 19 * MILLISECOND);
    report("stays_alone", loops(shared, 1, 2) && most_chunks == 1);
    pass(16 * MILLISECOND);
    report("comes_back", loops(only_with_help, 1, 2) && most_chunks == CHUNKS && helped > 0);
    return 0;
}
