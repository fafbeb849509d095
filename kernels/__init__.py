"""Device code only, free of torch C++ types; installed as ``cxr_fast.kernels``."""
