/* What a module that `ptq compile` wrote offers to C and C++. Link with it, or dlopen it. */
#ifndef PTQ_MODULE_H
#define PTQ_MODULE_H

#include <stdint.h>

#define PTQ_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* JSON: names and shapes of the inputs and outputs of one call, samples of a call, target, ... */
PTQ_API extern const char ptq_description[];

/* How many inputs and outputs there are, and the elements that one call takes and gives. */
PTQ_API int32_t ptq_inputs(void);
PTQ_API int32_t ptq_outputs(void);
PTQ_API int64_t ptq_input_size(int32_t input);
PTQ_API int64_t ptq_output_size(int32_t output);

/* Bytes of scratch memory that one thread needs. */
PTQ_API int64_t ptq_arena_bytes(void);

/* How many kernels a run calls; the description says which. */
PTQ_API int32_t ptq_kernel_calls(void);

/* Run the network.
 *
 * calls: how often, over consecutive samples; 1 unless the batch is dynamic.
 * inputs, outputs: one dense array each, in the description's order and of the type that it names;
 * float32 unless the network reads integers, such as token ids, as they are.
 * arena: threads * ptq_arena_bytes() bytes at an address of 64 bytes, not shared by runs at once.
 * threads: at most so many work; those besides the caller belong to the module and sleep between.
 * nanoseconds: NULL, or ptq_kernel_calls() numbers, to which the time of each is added.
 *
 * A module for a GPU copies from and to these arrays. It needs no arena (ptq_arena_bytes() is 0,
 * except where all tensors can be read after a call) and no threads.
 *
 * Returns 0; PTQ_NO_ROW if an input holds the number of a row that does not exist, and then nothing
 * was run; PTQ_NO_PROCESSOR if the code is for another one; for a GPU also PTQ_NO_DEVICE or
 * PTQ_DEVICE_FAILED.
 */
enum { PTQ_NO_DEVICE = 1, PTQ_DEVICE_FAILED = 2, PTQ_NO_ROW = 3, PTQ_NO_PROCESSOR = 4 };
PTQ_API int32_t ptq_run(int32_t calls, const void *const *inputs, float *const *outputs,
                        void *arena, int32_t threads, int64_t *nanoseconds);

/* What went wrong in this thread's last run that did not return 0. */
PTQ_API const char *ptq_error(void);

#ifdef __cplusplus
}
#endif
#endif
