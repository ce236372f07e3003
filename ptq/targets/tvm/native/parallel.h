/* Loops over several threads that never wait for a thread which does not come. */
#ifndef PTQ_PARALLEL_H
#define PTQ_PARALLEL_H

#include <stdint.h>

#define PTQ_MOST_THREADS 256

/* Do part `chunk` of `chunks`. participant: 0 is the caller, below `threads`; no two run at once. */
typedef void (*ptq_part)(void *context, int32_t chunk, int32_t chunks, int32_t participant);

/* Do all parts, in `chunks` of them, or in one while helpers are known to be held up. */
void ptq_parallel(ptq_part part, void *context, int32_t chunks, int32_t threads);

/* How a loop is run: by the caller alone, or by several threads together. */
enum { PTQ_ALONE, PTQ_TOGETHER, PTQ_WAYS };

/* What a loop took in either way; zeros to begin with. */
typedef struct {
    _Atomic int64_t nanoseconds[PTQ_WAYS];
    _Atomic uint32_t runs;
    _Atomic int32_t threads;
} ptq_record;

/* The same in the way that is faster: both are tried at first, and again from time to time. */
void ptq_parallel_or_alone(ptq_part part, void *context, int32_t chunks, int32_t threads,
                           ptq_record *record);

#endif
