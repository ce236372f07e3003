/* A module for GPUs: kernels launched one after another, on one allocation that holds constants,
 * scratch memory, inputs and outputs.
 *
 * ports.h, included by the command line, is generated: kernels, their grids, their operands.
 */
#include "contents.h"
#include "device.h"
#include "ptq_module.h"

#include <pthread.h>
#include <stdbool.h>

/* The device as this process has opened it; guarded by `lock`. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool opened, ready;

static int32_t load(void)
{
    PTQ_TRY(ptq_device_load());
    PTQ_TRY(ptq_device_write(0, ptq_weights(), PTQ_WEIGHTS_BYTES));
    PTQ_TRY(ptq_device_finish());
    ready = true;
    return 0;
}

static int32_t run_one(int64_t call, const void *const *inputs, float *const *outputs,
                       int64_t *nanoseconds)
{
    for (int i = 0; i < PTQ_INPUTS; i++)
        PTQ_TRY(ptq_device_write(input_offsets[i], (const char *)inputs[i] + call * input_bytes[i],
                                 input_bytes[i]));
    for (int i = 0; i < PTQ_CALLS; i++)
        PTQ_TRY(ptq_device_launch(&launches[i], nanoseconds == NULL ? NULL : &nanoseconds[i]));
    for (int i = 0; i < PTQ_OUTPUTS; i++)
        PTQ_TRY(ptq_device_read(outputs[i] + call * output_sizes[i], output_offsets[i],
                                output_sizes[i] * sizeof(float)));
    return 0;
}

static int32_t run_all(int32_t calls, const void *const *inputs, float *const *outputs,
                       void *arena, int64_t *nanoseconds)
{
    if (!ready)
        PTQ_TRY(load());
    int32_t status = 0;
    for (int32_t call = 0; call < calls && status == 0; call++)
        status = run_one(call, inputs, outputs, nanoseconds);
    if (status != 0) {
        ptq_device_finish(); /* nothing may write to the caller's arrays later on */
        return status;
    }
    if (PTQ_ARENA_BYTES > 0)
        PTQ_TRY(ptq_device_read(arena, PTQ_ARENA_OFFSET, PTQ_ARENA_BYTES));
    return ptq_device_finish();
}

int32_t ptq_run(int32_t calls, const void *const *inputs, float *const *outputs, void *arena,
                int32_t threads, int64_t *nanoseconds)
{
    (void)threads;
    PTQ_TRY(ptq_check_rows(calls, inputs));
    pthread_mutex_lock(&lock);
    int32_t status = opened ? 0 : ptq_device_open();
    opened = status == 0;
    if (status == 0)
        status = ptq_device_enter();
    if (status == 0) {
        status = run_all(calls, inputs, outputs, arena, nanoseconds);
        ptq_device_leave();
    }
    pthread_mutex_unlock(&lock);
    return status;
}
