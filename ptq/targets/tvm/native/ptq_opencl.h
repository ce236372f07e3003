/* CUDA's words in the kernels' text, in OpenCL C. */
#pragma OPENCL FP_CONTRACT OFF

/* c + the sum of four products of unsigned and signed bytes. */
static inline int __dp4a(uint codes, int weights, int c)
{
    const int4 products = convert_int4(as_uchar4(codes)) * convert_int4(as_char4(weights));
    return c + products.x + products.y + products.z + products.w;
}

/* Four of the eight bytes of a and b, by the lowest four nibbles of `nibbles`, all below 8. */
static inline uint __byte_perm(uint a, uint b, uint nibbles)
{
    const uchar4 bytes = convert_uchar4((uint4)(nibbles, nibbles >> 4, nibbles >> 8, nibbles >> 12) & 7);
    return as_uint(shuffle2(as_uchar4(a), as_uchar4(b), bytes));
}
