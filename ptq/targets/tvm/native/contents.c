/* What every module holds: its constants, its description, the sizes of its arrays, its last error.
 *
 * ports.h, included by the command line, is generated: how many arrays there are and their sizes.
 * Constants enter as files, so that neither LLVM nor the C compiler has to read megabytes.
 */
#include "contents.h"
#include "ptq_module.h"

#include <stdarg.h>
#include <stdio.h>

__asm__(".section .rodata\n"
        ".balign 64\n"
        "ptq_weights_data: .incbin \"" PTQ_WEIGHTS "\"\n"
        ".global ptq_description\n"
        "ptq_description: .incbin \"" PTQ_DESCRIPTION "\"\n"
        ".byte 0\n"
        ".previous\n");
extern const char ptq_weights_data[];

static _Thread_local char error_text[512];

void *ptq_weights(void) { return (void *)ptq_weights_data; }

int32_t ptq_inputs(void) { return PTQ_INPUTS; }
int32_t ptq_outputs(void) { return PTQ_OUTPUTS; }
int64_t ptq_input_size(int32_t input) { return input_sizes[input]; }
int64_t ptq_output_size(int32_t output) { return output_sizes[output]; }
int32_t ptq_kernel_calls(void) { return PTQ_CALLS; }
int64_t ptq_arena_bytes(void) { return PTQ_ARENA_BYTES; }
const char *ptq_error(void) { return error_text; }

void ptq_set_error(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(error_text, sizeof error_text, format, values);
    va_end(values);
}

int32_t ptq_check_rows(int32_t calls, const void *const *inputs)
{
    for (int32_t i = 0; i < PTQ_INPUTS; i++) {
        int narrow = input_bytes[i] == 4 * input_sizes[i];
        int64_t rows = input_rows[i], count = rows == 0 ? 0 : calls * input_sizes[i];
        for (int64_t at = 0; at < count; at++) {
            int64_t row = narrow ? ((const int32_t *)inputs[i])[at] : ((const int64_t *)inputs[i])[at];
            if (row >= -rows && row < rows)
                continue;
            ptq_set_error("input %d holds %lld; wanted %lld to %lld", (int)i, (long long)row,
                          (long long)-rows, (long long)rows - 1);
            return PTQ_NO_ROW;
        }
    }
    return 0;
}
