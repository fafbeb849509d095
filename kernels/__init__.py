"""Device code: Triton and CUDA kernels, with nothing of the package in them."""
