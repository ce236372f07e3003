/* What a kind of device does for device_module.c; every function sets the error where it fails.
 *
 * Everything on the device is one allocation of PTQ_DEVICE_BYTES, and places are offsets into it.
 * Work is done in order; only `finish` waits for it.
 */
#ifndef PTQ_DEVICE_H
#define PTQ_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#define PTQ_TRY(call)                                                                            \
    do {                                                                                         \
        int32_t status_ = (call);                                                                \
        if (status_ != 0)                                                                        \
            return status_;                                                                      \
    } while (0)

/* Find the driver and take a device; PTQ_NO_DEVICE if there is none. */
int32_t ptq_device_open(void);

/* Make kernels and the allocation, on a device that is open. */
int32_t ptq_device_load(void);

/* Make the device this thread's, and undo it. */
int32_t ptq_device_enter(void);
void ptq_device_leave(void);

int32_t ptq_device_write(int64_t offset, const void *from, size_t size);
int32_t ptq_device_read(void *to, int64_t offset, size_t size);

/* Start a kernel; with nanoseconds, wait for it and add its time. */
int32_t ptq_device_launch(const Launch *call, int64_t *nanoseconds);

int32_t ptq_device_finish(void);

#endif
