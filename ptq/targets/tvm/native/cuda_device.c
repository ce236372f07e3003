/* An NVIDIA GPU, by CUDA's driver. */
#include "contents.h"
#include "cuda_driver.h"
#include "device.h"
#include "ptq_module.h"

enum { NON_BLOCKING = 1 };

__asm__(".section .rodata\n"
        ".balign 64\n"
        "ptq_image: .incbin \"" PTQ_IMAGE "\"\n"
        ".previous\n");
extern const char ptq_image[];

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
int32_t ptq_device_open(void)
{
    CUdevice device;
    PTQ_TRY(ptq_find_cuda(&cuda));
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

int32_t ptq_device_enter(void)
{
    TRY(cuCtxPushCurrent, context);
    return 0;
}

void ptq_device_leave(void)
{
    CUcontext mine;
    cuda.cuCtxPopCurrent(&mine);
}

int32_t ptq_device_load(void)
{
    CUmodule module;
    TRY(cuModuleLoadData, &module, ptq_image);
    for (int i = 0; i < PTQ_KERNELS; i++)
        TRY(cuModuleGetFunction, &kernels[i], module, kernel_names[i]);
    TRY(cuStreamCreate, &stream, NON_BLOCKING);
    TRY(cuEventCreate, &before, 0);
    TRY(cuEventCreate, &after, 0);
    TRY(cuMemAlloc, &memory, PTQ_DEVICE_BYTES);
    return 0;
}

int32_t ptq_device_write(int64_t offset, const void *from, size_t size)
{
    TRY(cuMemcpyHtoDAsync, memory + offset, from, size, stream);
    return 0;
}

int32_t ptq_device_read(void *to, int64_t offset, size_t size)
{
    TRY(cuMemcpyDtoHAsync, to, memory + offset, size, stream);
    return 0;
}

int32_t ptq_device_finish(void)
{
    TRY(cuStreamSynchronize, stream);
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

int32_t ptq_device_launch(const Launch *call, int64_t *nanoseconds)
{
    float milliseconds;
    if (nanoseconds == NULL)
        return launch(call);
    TRY(cuEventRecord, before, stream);
    PTQ_TRY(launch(call));
    TRY(cuEventRecord, after, stream);
    TRY(cuEventSynchronize, after);
    TRY(cuEventElapsedTime, &milliseconds, before, after);
    *nanoseconds += (int64_t)(milliseconds * 1e6f);
    return 0;
}
