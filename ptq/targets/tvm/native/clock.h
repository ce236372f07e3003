/* A clock that only goes forward. Apart, so that tests can put one of their own in its place. */
#ifndef PTQ_CLOCK_H
#define PTQ_CLOCK_H

#include <stdint.h>

int64_t ptq_nanoseconds(void);

#endif
