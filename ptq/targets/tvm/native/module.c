/* A module for CPUs: its one function, and what its kernels ask of TVM's runtime, so that it needs
 * no library but libc.
 */
#include "clock.h"
#include "contents.h"
#include "parallel.h"
#include "ptq_module.h"

#include <stdatomic.h>
#include <stddef.h>

#define CHUNKS_A_THREAD 4 /* so that a late helper costs at most a fraction of a loop */

static _Thread_local int32_t threads_allowed = 1;
static _Thread_local int64_t *times;
static _Thread_local int64_t last_mark;

/* Called after every kernel. */
int32_t ptq_mark(int32_t call)
{
    if (times != NULL) {
        int64_t now = ptq_nanoseconds();
        times[call] += now - last_mark;
        last_mark = now;
    }
    return 0;
}

/* TVM's parallel loops: a function for part `task` of `tasks`. */
typedef struct {
    void *unused;
    int32_t tasks;
} Environment;
typedef int (*Lambda)(int task, Environment *environment, void *data);
typedef struct {
    Lambda lambda;
    void *data;
} Loop;

static void part_of_loop(void *context, int32_t chunk, int32_t chunks, int32_t participant)
{
    (void)participant;
    Loop *loop = context;
    Environment environment = {NULL, chunks};
    loop->lambda(chunk, &environment, loop->data);
}

/* What is known of a loop, by its function; NULL for those that came when the table was full. */
static ptq_record *record_of(Lambda lambda)
{
    enum { RECORDS = 1024 };
    static struct {
        _Atomic(Lambda) loop;
        ptq_record record;
    } records[RECORDS];
    for (size_t i = 0, at = (uintptr_t)lambda / 16; i < RECORDS; i++, at++) {
        Lambda found = NULL;
        if (atomic_compare_exchange_strong(&records[at % RECORDS].loop, &found, lambda) ||
            found == lambda)
            return &records[at % RECORDS].record;
    }
    return NULL;
}

static int launch(Lambda lambda, void *data, int tasks)
{
    (void)tasks;
    Loop loop = {lambda, data};
    int32_t threads = threads_allowed, chunks = CHUNKS_A_THREAD * threads;
    ptq_record *record = threads > 1 ? record_of(lambda) : NULL;
    if (record == NULL)
        ptq_parallel(part_of_loop, &loop, chunks, threads);
    else
        ptq_parallel_or_alone(part_of_loop, &loop, chunks, threads, record);
    return 0;
}

/* Generated code calls through this pointer. */
int (*__TVMBackendParallelLaunch)(Lambda, void *, int) = launch;
int TVMBackendParallelLaunch(Lambda lambda, void *data, int tasks)
{
    return launch(lambda, data, tasks);
}

typedef struct {
    int32_t calls;
    const void *const *inputs;
    float *const *outputs;
    char *arena;
} Run;

static void run_one(const Run *run, int64_t call, char *arena)
{
    const void *inputs[PTQ_INPUTS];
    float *outputs[PTQ_OUTPUTS];
    for (int i = 0; i < PTQ_INPUTS; i++)
        inputs[i] = (const char *)run->inputs[i] + call * input_bytes[i];
    for (int i = 0; i < PTQ_OUTPUTS; i++)
        outputs[i] = run->outputs[i] + call * output_sizes[i];
    ptq_entry(PTQ_PORTS, arena);
}

static void part_of_batch(void *context, int32_t chunk, int32_t chunks, int32_t participant)
{
    const Run *run = context;
    int64_t first = (int64_t)run->calls * chunk / chunks;
    int64_t end = (int64_t)run->calls * (chunk + 1) / chunks;
    for (int64_t call = first; call < end; call++)
        run_one(run, call, run->arena + participant * (int64_t)PTQ_ARENA_BYTES);
}

int32_t ptq_run(int32_t calls, const void *const *inputs, float *const *outputs, void *arena,
                int32_t threads, int64_t *nanoseconds)
{
    int32_t status = ptq_check_processor();
    if (status == 0)
        status = ptq_check_rows(calls, inputs);
    if (status != 0)
        return status;
    Run run = {calls, inputs, outputs, arena};
    times = nanoseconds;
    last_mark = times == NULL ? 0 : ptq_nanoseconds();
    if (calls >= threads && times == NULL) {
        ptq_parallel(part_of_batch, &run, calls, threads); /* samples need not wait for each other */
    } else {
        threads_allowed = threads;
        part_of_batch(&run, 0, 1, 0);
        threads_allowed = 1;
    }
    times = NULL;
    return 0;
}
