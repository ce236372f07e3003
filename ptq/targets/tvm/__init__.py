"""Targets `tvm:...`: the integer program as a compiled module of direct kernel calls.

    description  what '--target llvm:native' means
    trace        the shape of every value, for one sample or a fixed batch
    support      what cannot be compiled, said before anything is
    layout       channels last where images are, and where an element is
    lowering     steps to kernel calls, by the table in `steps`; `fast` and `tensor_cores` choose
    memory_plan  offsets in one arena
    host_code    a CPU: TVM's compiler; `driver` is the entry function, calls in order
    device_code  a GPU: `device_text`, `nvcc`, and a table of launches
    module       compile, link, describe

The kernels are in ptq.kernels. Only modules from `lowering` on import TVM.
"""
