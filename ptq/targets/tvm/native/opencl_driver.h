/* The part of OpenCL that a module calls, found at run time: it is linked with nothing of OpenCL, and
 * loads on machines that have none. Numbers are those of Khronos's cl.h.
 */
#ifndef PTQ_OPENCL_DRIVER_H
#define PTQ_OPENCL_DRIVER_H

#include <stddef.h>
#include <stdint.h>

typedef struct cl_platform *cl_platform_id;
typedef struct cl_device *cl_device_id;
typedef struct cl_context_ *cl_context;
typedef struct cl_queue *cl_command_queue;
typedef struct cl_program_ *cl_program;
typedef struct cl_kernel_ *cl_kernel;
typedef struct cl_event_ *cl_event;
typedef int32_t cl_result;

enum {
    CL_PROGRAM_BUILD_LOG = 0x1183,
    CL_DEVICE_SVM_CAPABILITIES = 0x1053,
    CL_QUEUE_PROPERTIES = 0x1093,
    CL_PROFILING_COMMAND_START = 0x1282,
    CL_PROFILING_COMMAND_END = 0x1283
};
enum { CL_DEVICE_TYPE_GPU = 4, CL_DEVICE_SVM_COARSE_GRAIN_BUFFER = 1, CL_MEM_READ_WRITE = 1 };
enum { CL_QUEUE_PROFILING_ENABLE = 2 };
#define CL_DEVICE_TYPE_ALL 0xFFFFFFFFu

/* F(result, name, parameters) */
#define PTQ_OPENCL_FUNCTIONS(F)                                                                   \
    F(cl_result, clGetPlatformIDs, (uint32_t room, cl_platform_id * found, uint32_t * count))     \
    F(cl_result, clGetDeviceIDs,                                                                  \
      (cl_platform_id platform, uint64_t type, uint32_t room, cl_device_id * found,               \
       uint32_t * count))                                                                         \
    F(cl_result, clGetDeviceInfo,                                                                 \
      (cl_device_id device, uint32_t what, size_t room, void *value, size_t *size))               \
    F(cl_context, clCreateContext,                                                                \
      (const intptr_t *properties, uint32_t count, const cl_device_id *devices, void *notify,     \
       void *data, cl_result *result))                                                            \
    F(cl_command_queue, clCreateCommandQueueWithProperties,                                       \
      (cl_context context, cl_device_id device, const uint64_t *properties, cl_result *result))   \
    F(cl_program, clCreateProgramWithSource,                                                      \
      (cl_context context, uint32_t count, const char **texts, const size_t *sizes,               \
       cl_result *result))                                                                        \
    F(cl_result, clBuildProgram,                                                                  \
      (cl_program program, uint32_t count, const cl_device_id *devices, const char *options,      \
       void *notify, void *data))                                                                 \
    F(cl_result, clGetProgramBuildInfo,                                                           \
      (cl_program program, cl_device_id device, uint32_t what, size_t room, void *value,          \
       size_t *size))                                                                             \
    F(cl_kernel, clCreateKernel, (cl_program program, const char *name, cl_result *result))       \
    F(void *, clSVMAlloc, (cl_context context, uint64_t flags, size_t size, uint32_t alignment))  \
    F(cl_result, clSetKernelArgSVMPointer,                                                        \
      (cl_kernel kernel, uint32_t number, const void *pointer))                                   \
    F(cl_result, clEnqueueSVMMemcpy,                                                              \
      (cl_command_queue queue, uint32_t blocking, void *to, const void *from, size_t size,        \
       uint32_t count, const cl_event *after, cl_event *event))                                   \
    F(cl_result, clEnqueueNDRangeKernel,                                                          \
      (cl_command_queue queue, cl_kernel kernel, uint32_t axes, const size_t *offset,             \
       const size_t *global, const size_t *local, uint32_t count, const cl_event *after,          \
       cl_event *event))                                                                          \
    F(cl_result, clFinish, (cl_command_queue queue))                                              \
    F(cl_result, clWaitForEvents, (uint32_t count, const cl_event *events))                       \
    F(cl_result, clGetEventProfilingInfo,                                                         \
      (cl_event event, uint32_t what, size_t room, void *value, size_t *size))                    \
    F(cl_result, clReleaseEvent, (cl_event event))

typedef struct {
#define PTQ_DECLARE(result, name, parameters) result(*name) parameters;
    PTQ_OPENCL_FUNCTIONS(PTQ_DECLARE)
#undef PTQ_DECLARE
} ptq_opencl;

/* Find the library; 0, or PTQ_NO_DEVICE with the error set. */
int32_t ptq_find_opencl(ptq_opencl *opencl);

#endif
