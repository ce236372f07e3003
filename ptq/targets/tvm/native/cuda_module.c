/* A module for GPUs: kernels launched one after another, on one allocation that holds constants,
 * scratch memory, inputs and outputs.
 *
 * ports.h, included by the command line, is generated: kernels, their grids, their operands.
 */
#include "contents.h"
#include "cuda_driver.h"
#include "ptq_module.h"

#include <pthread.h>
#include <stdbool.h>

enum { NON_BLOCKING = 1 };

__asm__(".section .rodata\n"
        ".balign 64\n"
        "ptq_image: .incbin \"" PTQ_IMAGE "\"\n"
        ".previous\n");
extern const char ptq_image[];

/* The device as this process has opened it; guarded by `lock`. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool ready;
static ptq_cuda cuda;
static CUcontext context;
static CUstream stream;
static CUdeviceptr memory;
static CUfunction kernels[PTQ_KERNELS];
static CUevent before, after;

#define TRY(call, ...)                                                                           \
    do {                                                                                         \
        CUresult result = cuda.call(__VA_ARGS__);                                                \
        if (result != 0) {                                                                       \
            ptq_cuda_error(&cuda, #call, result);                                                \
            return PTQ_DEVICE_FAILED;                                                            \
        }                                                                                        \
    } while (0)

/* Take the first device; one that cannot be had is not there. */
static int32_t open_device(void)
{
    CUdevice device;
    int32_t status = ptq_find_cuda(&cuda);
    if (status != 0)
        return status;
    const char *call = "cuInit";
    CUresult result = cuda.cuInit(0);
    if (result == 0)
        result = cuda.cuDeviceGet(&device, 0), call = "cuDeviceGet";
    if (result == 0)
        result = cuda.cuDevicePrimaryCtxRetain(&context, device), call = "cuDevicePrimaryCtxRetain";
    if (result == 0)
        return 0;
    ptq_cuda_error(&cuda, call, result);
    return PTQ_NO_DEVICE;
}

/* Kernels and constants; the context is current. */
static int32_t load(void)
{
    CUmodule module;
    TRY(cuModuleLoadData, &module, ptq_image);
    for (int i = 0; i < PTQ_KERNELS; i++)
        TRY(cuModuleGetFunction, &kernels[i], module, kernel_names[i]);
    TRY(cuStreamCreate, &stream, NON_BLOCKING);
    TRY(cuEventCreate, &before, 0);
    TRY(cuEventCreate, &after, 0);
    TRY(cuMemAlloc, &memory, PTQ_DEVICE_BYTES);
    TRY(cuMemcpyHtoDAsync, memory, ptq_weights(), PTQ_WEIGHTS_BYTES, stream);
    TRY(cuStreamSynchronize, stream);
    ready = true;
    return 0;
}

static int32_t launch(const Launch *call)
{
    CUdeviceptr addresses[PTQ_MOST_OPERANDS];
    void *arguments[PTQ_MOST_OPERANDS];
    for (int i = 0; i < call->operands; i++) {
        addresses[i] = memory + operands[call->first + i];
        arguments[i] = &addresses[i];
    }
    TRY(cuLaunchKernel, kernels[call->kernel], call->blocks, 1, 1, call->threads, 1, 1, 0, stream,
        arguments, NULL);
    return 0;
}

static int32_t launch_timed(const Launch *call, int64_t *nanoseconds)
{
    float milliseconds;
    TRY(cuEventRecord, before, stream);
    int32_t status = launch(call);
    if (status != 0)
        return status;
    TRY(cuEventRecord, after, stream);
    TRY(cuEventSynchronize, after);
    TRY(cuEventElapsedTime, &milliseconds, before, after);
    *nanoseconds += (int64_t)(milliseconds * 1e6f);
    return 0;
}

static int32_t run_one(int64_t call, const void *const *inputs, float *const *outputs,
                       int64_t *nanoseconds)
{
    for (int i = 0; i < PTQ_INPUTS; i++)
        TRY(cuMemcpyHtoDAsync, memory + input_offsets[i],
            (const char *)inputs[i] + call * input_bytes[i], input_bytes[i], stream);
    for (int i = 0; i < PTQ_CALLS; i++) {
        int32_t status = nanoseconds == NULL ? launch(&launches[i])
                                             : launch_timed(&launches[i], &nanoseconds[i]);
        if (status != 0)
            return status;
    }
    for (int i = 0; i < PTQ_OUTPUTS; i++)
        TRY(cuMemcpyDtoHAsync, outputs[i] + call * output_sizes[i], memory + output_offsets[i],
            output_sizes[i] * sizeof(float), stream);
    return 0;
}

static int32_t run_all(int32_t calls, const void *const *inputs, float *const *outputs,
                       void *arena, int64_t *nanoseconds)
{
    int32_t status = ready ? 0 : load();
    for (int32_t call = 0; call < calls && status == 0; call++)
        status = run_one(call, inputs, outputs, nanoseconds);
    if (status != 0) {
        cuda.cuStreamSynchronize(stream); /* nothing may write to the caller's arrays later on */
        return status;
    }
    if (PTQ_ARENA_BYTES > 0)
        TRY(cuMemcpyDtoHAsync, arena, memory + PTQ_ARENA_OFFSET, PTQ_ARENA_BYTES, stream);
    TRY(cuStreamSynchronize, stream);
    return 0;
}

int32_t ptq_run(int32_t calls, const void *const *inputs, float *const *outputs, void *arena,
                int32_t threads, int64_t *nanoseconds)
{
    (void)threads;
    int32_t status = ptq_check_rows(calls, inputs);
    if (status != 0)
        return status;
    pthread_mutex_lock(&lock);
    status = context == NULL ? open_device() : 0;
    if (status == 0) {
        CUcontext mine;
        CUresult result = cuda.cuCtxPushCurrent(context);
        if (result == 0) {
            status = run_all(calls, inputs, outputs, arena, nanoseconds);
            cuda.cuCtxPopCurrent(&mine);
        } else {
            ptq_cuda_error(&cuda, "cuCtxPushCurrent", result);
            status = PTQ_DEVICE_FAILED;
        }
    }
    pthread_mutex_unlock(&lock);
    return status;
}
