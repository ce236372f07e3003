/* A device of OpenCL that has shared virtual memory, so that a kernel's operand can be a place inside
 * one allocation. Kernels are compiled when they are first needed, by the device's own compiler.
 */
#include "contents.h"
#include "device.h"
#include "opencl_driver.h"
#include "ptq_module.h"

#include <stdlib.h>

/* Quotients are those of IEEE, as in the reference; a device that rounds otherwise does not build. */
#define OPTIONS "-cl-std=CL1.2 -cl-fp32-correctly-rounded-divide-sqrt"

enum { MOST_DEVICES = 16 };

__asm__(".section .rodata\n"
        "ptq_image: .incbin \"" PTQ_IMAGE "\"\n"
        ".byte 0\n"
        ".previous\n");
extern const char ptq_image[];

static ptq_opencl opencl;
static cl_device_id device;
static cl_context context;
static cl_command_queue queue;
static cl_kernel kernels[PTQ_KERNELS];
static char *memory;

static int32_t failed(const char *call, cl_result result)
{
    ptq_set_error("%s: OpenCL's error %d", call, result);
    return PTQ_DEVICE_FAILED;
}

#define TRY(call, ...)                                                                           \
    do {                                                                                         \
        cl_result result = opencl.call(__VA_ARGS__);                                             \
        if (result != 0)                                                                         \
            return failed(#call, result);                                                        \
    } while (0)

/* The first device of that type, in any platform, whose kernels take pointers; else NULL. */
static cl_device_id find_device(uint64_t type)
{
    cl_platform_id platforms[MOST_DEVICES];
    uint32_t platform_count = 0;
    if (opencl.clGetPlatformIDs(MOST_DEVICES, platforms, &platform_count) != 0)
        return NULL;
    for (uint32_t i = 0; i < platform_count && i < MOST_DEVICES; i++) {
        cl_device_id devices[MOST_DEVICES];
        uint32_t count = 0;
        if (opencl.clGetDeviceIDs(platforms[i], type, MOST_DEVICES, devices, &count) != 0)
            continue;
        for (uint32_t k = 0; k < count && k < MOST_DEVICES; k++) {
            uint64_t can = 0;
            opencl.clGetDeviceInfo(devices[k], CL_DEVICE_SVM_CAPABILITIES, sizeof can, &can, NULL);
            if (can & CL_DEVICE_SVM_COARSE_GRAIN_BUFFER)
                return devices[k];
        }
    }
    return NULL;
}

/* A GPU, or else whatever there is. */
int32_t ptq_device_open(void)
{
    PTQ_TRY(ptq_find_opencl(&opencl));
    device = find_device(CL_DEVICE_TYPE_GPU);
    if (device == NULL)
        device = find_device(CL_DEVICE_TYPE_ALL);
    if (device != NULL)
        return 0;
    ptq_set_error("OpenCL has no device with shared virtual memory: install a driver");
    return PTQ_NO_DEVICE;
}

int32_t ptq_device_enter(void) { return 0; }
void ptq_device_leave(void) {}

static int32_t build(cl_program program)
{
    size_t size = 0;
    cl_result result = opencl.clBuildProgram(program, 1, &device, OPTIONS, NULL, NULL);
    if (result == 0)
        return 0;
    opencl.clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, 0, NULL, &size);
    char *log = calloc(size + 1, 1);
    if (log != NULL)
        opencl.clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, size, log, NULL);
    ptq_set_error("clBuildProgram: OpenCL's error %d: %s", result, log == NULL ? "" : log);
    free(log);
    return PTQ_DEVICE_FAILED;
}

int32_t ptq_device_load(void)
{
    const uint64_t timed[] = {CL_QUEUE_PROPERTIES, CL_QUEUE_PROFILING_ENABLE, 0};
    const char *text = ptq_image;
    cl_result result;
    context = opencl.clCreateContext(NULL, 1, &device, NULL, NULL, &result);
    if (result != 0)
        return failed("clCreateContext", result);
    queue = opencl.clCreateCommandQueueWithProperties(context, device, timed, &result);
    if (result != 0)
        return failed("clCreateCommandQueueWithProperties", result);
    cl_program program = opencl.clCreateProgramWithSource(context, 1, &text, NULL, &result);
    if (result != 0)
        return failed("clCreateProgramWithSource", result);
    PTQ_TRY(build(program));
    for (int i = 0; i < PTQ_KERNELS; i++) {
        kernels[i] = opencl.clCreateKernel(program, kernel_names[i], &result);
        if (result != 0)
            return failed("clCreateKernel", result);
    }
    memory = opencl.clSVMAlloc(context, CL_MEM_READ_WRITE, PTQ_DEVICE_BYTES, 0);
    if (memory != NULL)
        return 0;
    ptq_set_error("clSVMAlloc: the device has not %lld bytes", (long long)PTQ_DEVICE_BYTES);
    return PTQ_DEVICE_FAILED;
}

int32_t ptq_device_write(int64_t offset, const void *from, size_t size)
{
    TRY(clEnqueueSVMMemcpy, queue, 0, memory + offset, from, size, 0, NULL, NULL);
    return 0;
}

int32_t ptq_device_read(void *to, int64_t offset, size_t size)
{
    TRY(clEnqueueSVMMemcpy, queue, 0, to, memory + offset, size, 0, NULL, NULL);
    return 0;
}

int32_t ptq_device_finish(void)
{
    TRY(clFinish, queue);
    return 0;
}

static int32_t add_time(cl_event event, int64_t *nanoseconds)
{
    uint64_t start, end;
    TRY(clWaitForEvents, 1, &event);
    TRY(clGetEventProfilingInfo, event, CL_PROFILING_COMMAND_START, sizeof start, &start, NULL);
    TRY(clGetEventProfilingInfo, event, CL_PROFILING_COMMAND_END, sizeof end, &end, NULL);
    *nanoseconds += (int64_t)(end - start);
    return 0;
}

int32_t ptq_device_launch(const Launch *call, int64_t *nanoseconds)
{
    cl_kernel kernel = kernels[call->kernel];
    const size_t local = call->threads, global = local * call->blocks;
    cl_event event;
    for (int i = 0; i < call->operands; i++)
        TRY(clSetKernelArgSVMPointer, kernel, i, memory + operands[call->first + i]);
    TRY(clEnqueueNDRangeKernel, queue, kernel, 1, NULL, &global, &local, 0, NULL,
        nanoseconds == NULL ? NULL : &event);
    if (nanoseconds == NULL)
        return 0;
    int32_t status = add_time(event, nanoseconds);
    opencl.clReleaseEvent(event);
    return status;
}
