/* One product of a warp on tensor cores, of which each thread has its part in registers. */
#ifdef __CUDACC__
static __device__ __forceinline__ void ptq_mma(int *sums, unsigned a0, unsigned a1, unsigned a2,
                                               unsigned a3, int b0, int b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif
