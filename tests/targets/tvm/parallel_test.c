/* What parallel.c promises, as lines that test_parallel.py reads. */
#include "parallel.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/wait.h>

enum { CHUNKS = 64 };

static _Atomic int32_t counts[CHUNKS];
static _Atomic int32_t most_chunks, helped;
static int32_t slow_helpers;

static void count(void *context, int32_t chunk, int32_t chunks, int32_t participant)
{
    (void)context;
    atomic_store(&most_chunks, chunks);
    for (int32_t i = CHUNKS * chunk / chunks; i < CHUNKS * (chunk + 1) / chunks; i++)
        atomic_fetch_add(&counts[i], 1);
    if (participant > 0) {
        atomic_fetch_add(&helped, 1);
        if (slow_helpers)
            usleep(20000);
    } else {
        usleep(100); /* leaves some for the helpers */
    }
}

/* Longer together than alone: helpers come, and then nobody works. */
static void never_helped(void *context, int32_t chunk, int32_t chunks, int32_t participant)
{
    (void)context, (void)chunk, (void)participant;
    atomic_store(&most_chunks, chunks);
    usleep(1000 / (chunks == 1 ? 2 : 1));
}

/* Sleeping is work that several do in less time, whatever else the machine has to do. */
static void helped_by_all(void *context, int32_t chunk, int32_t chunks, int32_t participant)
{
    (void)context, (void)chunk, (void)participant;
    atomic_store(&most_chunks, chunks);
    usleep(8000 / chunks);
}

static int chunks_at_last(ptq_part part)
{
    ptq_record record = {0};
    for (int i = 0; i < 20; i++)
        ptq_parallel_or_alone(part, NULL, 4, 2, &record);
    return most_chunks;
}

static int every(int32_t wanted)
{
    for (int i = 0; i < CHUNKS; i++)
        if (counts[i] != wanted)
            return 0;
    return 1;
}

static int loops(int number, int32_t threads)
{
    memset((void *)counts, 0, sizeof counts);
    for (int i = 0; i < number; i++)
        ptq_parallel(count, NULL, CHUNKS, threads);
    return every(number);
}

int main(void)
{
    printf("alone %d\n", loops(3, 1) && most_chunks == 1);
    printf("once %d\n", loops(50, 3));
    printf("helped %d\n", helped > 0);
    usleep(100000); /* they sleep by now */
    helped = 0;
    printf("woken %d\n", loops(20, 3) && helped > 0);

    pid_t child = fork();
    if (child == 0)
        _exit(loops(20, 3) ? 0 : 1);
    int status;
    waitpid(child, &status, 0);
    printf("forked %d\n", status == 0);

    printf("alone_if_faster %d\n", chunks_at_last(never_helped) == 1);
    printf("together_if_faster %d\n", chunks_at_last(helped_by_all) == 4);

    slow_helpers = 1;
    for (int i = 0; i < 50 && (most_chunks != 1 || i == 0); i++)
        loops(1, 2);
    printf("backs_off %d\n", most_chunks == 1);
    helped = 0;
    printf("stays_alone %d\n", loops(10, 2) && helped == 0);
    return 0;
}
