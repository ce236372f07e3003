/* The few functions of the CUDA driver that a module calls, found at run time: it is linked with
 * nothing of CUDA, and loads on machines without a GPU.
 */
#ifndef PTQ_CUDA_DRIVER_H
#define PTQ_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

typedef int32_t CUresult;
typedef int32_t CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;

/* F(name, version's suffix, parameters) */
#define PTQ_CUDA_FUNCTIONS(F)                                                                     \
    F(cuInit, "", (uint32_t flags))                                                               \
    F(cuGetErrorName, "", (CUresult error, const char **name))                                    \
    F(cuGetErrorString, "", (CUresult error, const char **text))                                  \
    F(cuDeviceGet, "", (CUdevice * device, int32_t number))                                       \
    F(cuDevicePrimaryCtxRetain, "", (CUcontext * context, CUdevice device))                       \
    F(cuCtxPushCurrent, "_v2", (CUcontext context))                                               \
    F(cuCtxPopCurrent, "_v2", (CUcontext * context))                                              \
    F(cuModuleLoadData, "", (CUmodule * module, const void *image))                               \
    F(cuModuleGetFunction, "", (CUfunction * function, CUmodule module, const char *name))        \
    F(cuMemAlloc, "_v2", (CUdeviceptr * memory, size_t size))                                     \
    F(cuMemcpyHtoDAsync, "_v2", (CUdeviceptr to, const void *from, size_t size, CUstream stream)) \
    F(cuMemcpyDtoHAsync, "_v2", (void *to, CUdeviceptr from, size_t size, CUstream stream))       \
    F(cuStreamCreate, "", (CUstream * stream, uint32_t flags))                                    \
    F(cuStreamSynchronize, "", (CUstream stream))                                                 \
    F(cuEventCreate, "", (CUevent * event, uint32_t flags))                                       \
    F(cuEventRecord, "", (CUevent event, CUstream stream))                                        \
    F(cuEventSynchronize, "", (CUevent event))                                                    \
    F(cuEventElapsedTime, "", (float *milliseconds, CUevent start, CUevent end))                  \
    F(cuLaunchKernel, "",                                                                         \
      (CUfunction function, uint32_t blocks_x, uint32_t blocks_y, uint32_t blocks_z,              \
       uint32_t threads_x, uint32_t threads_y, uint32_t threads_z, uint32_t shared_bytes,         \
       CUstream stream, void **arguments, void **extra))

typedef struct {
#define PTQ_DECLARE(name, suffix, parameters) CUresult(*name) parameters;
    PTQ_CUDA_FUNCTIONS(PTQ_DECLARE)
#undef PTQ_DECLARE
} ptq_cuda;

/* Find the driver; 0, or PTQ_NO_DEVICE with the error set. */
int32_t ptq_find_cuda(ptq_cuda *cuda);

/* Set the error of a call that did not succeed. */
void ptq_cuda_error(const ptq_cuda *cuda, const char *call, CUresult result);

#endif
