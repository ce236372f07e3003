#include "opencl_driver.h"

#include "contents.h"
#include "ptq_module.h"

#include <dlfcn.h>

int32_t ptq_find_opencl(ptq_opencl *opencl)
{
    void *library = dlopen("libOpenCL.so.1", RTLD_NOW);
    if (library == NULL) {
        ptq_set_error("this module runs by OpenCL, which is not installed: %s", dlerror());
        return PTQ_NO_DEVICE;
    }
#define PTQ_FIND(result, name, parameters)                                                       \
    *(void **)&opencl->name = dlsym(library, #name);                                             \
    if (opencl->name == NULL) {                                                                  \
        ptq_set_error("libOpenCL.so.1 has no " #name ": this module wants OpenCL 2.0 or newer");  \
        return PTQ_NO_DEVICE;                                                                    \
    }
    PTQ_OPENCL_FUNCTIONS(PTQ_FIND)
#undef PTQ_FIND
    return 0;
}
