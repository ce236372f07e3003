/* What the parts of a module ask of one another. */
#ifndef PTQ_CONTENTS_H
#define PTQ_CONTENTS_H

#include <stdint.h>

void *ptq_weights(void);

/* 0, or PTQ_NO_ROW where an input holds the number of a row that does not exist. */
int32_t ptq_check_rows(int32_t calls, const void *const *inputs);

/* 0, or PTQ_NO_PROCESSOR where the processor lacks what the code was compiled for. */
int32_t ptq_check_processor(void);

/* What ptq_error gives from now on, in this thread. */
__attribute__((format(printf, 1, 2))) void ptq_set_error(const char *format, ...);

#endif
