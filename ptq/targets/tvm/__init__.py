"""Targets `tvm:...`: the integer program as a compiled module of direct kernel calls.

    description  what '--target llvm:native' means
    trace        the shape of every value, for one sample or a fixed batch
    support      what cannot be compiled, said before anything is
    layout       channels last where images are, and where an element is
    lowering     steps to kernel calls, by the table in `steps`
    memory_plan  offsets in one arena
    driver       the entry function: calls in order
    module       compile, link, describe

The kernels are in ptq.kernels. Only modules from `lowering` on import TVM.
"""
