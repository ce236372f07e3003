/* What the parts of a module ask of one another. */
#ifndef PTQ_CONTENTS_H
#define PTQ_CONTENTS_H

void *ptq_weights(void);

/* What ptq_error gives from now on, in this thread. */
__attribute__((format(printf, 1, 2))) void ptq_set_error(const char *format, ...);

#endif
