/* Loops over several threads that never wait for a thread which does not come. */
#ifndef PTQ_PARALLEL_H
#define PTQ_PARALLEL_H

#include <stdint.h>

#define PTQ_MOST_THREADS 256

/* Do part `chunk` of `chunks`. participant: 0 is the caller, below `threads`; no two run at once. */
typedef void (*ptq_part)(void *context, int32_t chunk, int32_t chunks, int32_t participant);

int64_t ptq_nanoseconds(void);

/* Do all parts, in `chunks` of them, or in one if that is expected to be faster. */
void ptq_parallel(ptq_part part, void *context, int32_t chunks, int32_t threads);

#endif
