#include "cuda_driver.h"

#include "contents.h"
#include "ptq_module.h"

#include <dlfcn.h>

int32_t ptq_find_cuda(ptq_cuda *cuda)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (driver == NULL) {
        ptq_set_error("this module runs on an NVIDIA GPU, and its driver is not here: %s", dlerror());
        return PTQ_NO_DEVICE;
    }
#define PTQ_FIND(name, suffix, parameters)                                                       \
    *(void **)&cuda->name = dlsym(driver, #name suffix);                                         \
    if (cuda->name == NULL) {                                                                    \
        ptq_set_error("the NVIDIA driver has no " #name suffix ": install a newer one");         \
        return PTQ_NO_DEVICE;                                                                    \
    }
    PTQ_CUDA_FUNCTIONS(PTQ_FIND)
#undef PTQ_FIND
    return 0;
}

void ptq_cuda_error(const ptq_cuda *cuda, const char *call, CUresult result)
{
    const char *name = NULL, *text = NULL;
    cuda->cuGetErrorName(result, &name);
    cuda->cuGetErrorString(result, &text);
    ptq_set_error("%s: %s (%s)", call, text == NULL ? "unknown error" : text,
                  name == NULL ? "?" : name);
}
