// Masked global average pooling of given maps (Eq. 2), z_t = sum over pixels of M_{t-1} * cam / (H *
// W), and its gradient dcam = sum over t of dz_t * M_{t-1} / (H * W). attention_mining needs only the
// gradient: its logits fall out of mine_attention.
//
// Floor: one read of cam and erased_at; in the backward pass one read of erased_at, one write of dcam.
#include "device.cuh"

namespace cxr::gpu {

// M_{t-1} is 1 where erased_at - 1, modulo 256, is at least t - 1: "never" (0) becomes 255.
__device__ inline int lifetime(unsigned char erased_at) {
  return static_cast<unsigned char>(erased_at - 1);
}

// One block a map; maps of many steps are read again from the cache, once for every kSideBySide steps.
template <class T>
__device__ inline void masked_gap_of(const GapParameters& p) {
  constexpr int kSideBySide = 4;
  __shared__ double partial[32];
  const long long map = blockIdx.x;
  const T* cam = static_cast<const T*>(p.cam) + map * p.area;
  const unsigned char* erased_at = p.erased_at + map * p.area;
  for (int first = 0; first < p.steps; first += kSideBySide) {
    double sums[kSideBySide] = {};
    for (long long pixel = threadIdx.x; pixel < p.area; pixel += blockDim.x) {
      const double v = cam[pixel];
      const int life = lifetime(erased_at[pixel]);
#pragma unroll
      for (int i = 0; i < kSideBySide; ++i) sums[i] += life >= first + i ? v : 0.0;
    }
#pragma unroll
    for (int i = 0; i < kSideBySide; ++i) {
      const double all =
          block_combine(warp_sum(sums[i]), partial, [](double a, double b) { return a + b; });
      if (threadIdx.x == 0 && first + i < p.steps) {
        static_cast<T*>(p.logits)[map * p.steps + first + i] =
            static_cast<T>(all) / static_cast<T>(p.area);
      }
    }
  }
}

template <class T>
__device__ inline void masked_gap_backward_of(const GapParameters& p) {
  // A pixel erased at step s was alive in the means of steps 1..s, one never erased in all.
  __shared__ T of_step[256];
  const long long map = blockIdx.x / p.chunks, chunk = blockIdx.x % p.chunks;
  const T* grad = static_cast<const T*>(p.logits) + map * p.steps;
  for (int s = static_cast<int>(threadIdx.x); s < 256; s += static_cast<int>(blockDim.x)) {
    double sum = 0.0;
    const int alive_in = s == 0 || s > p.steps ? p.steps : s;
    for (int t = 0; t < alive_in; ++t) sum += grad[t];
    of_step[s] = static_cast<T>(sum / static_cast<double>(p.area));
  }
  __syncthreads();
  const long long begin = chunk * kPixelsPerBlock;
  const long long end = begin + kPixelsPerBlock < p.area ? begin + kPixelsPerBlock : p.area;
  T* grad_cam = static_cast<T*>(p.grad_cam) + map * p.area;
  const unsigned char* erased_at = p.erased_at + map * p.area;
  for (long long pixel = begin + threadIdx.x; pixel < end; pixel += blockDim.x) {
    grad_cam[pixel] = of_step[erased_at[pixel]];
  }
}

}  // namespace cxr::gpu

using cxr::gpu::GapParameters;

CXR_KERNEL(cxr::gpu::kPixelThreads, 4) masked_gap_float(const GapParameters p) {
  cxr::gpu::masked_gap_of<float>(p);
}
CXR_KERNEL(cxr::gpu::kPixelThreads, 4) masked_gap_double(const GapParameters p) {
  cxr::gpu::masked_gap_of<double>(p);
}
CXR_KERNEL(cxr::gpu::kPixelThreads, 4) masked_gap_backward_float(const GapParameters p) {
  cxr::gpu::masked_gap_backward_of<float>(p);
}
CXR_KERNEL(cxr::gpu::kPixelThreads, 4) masked_gap_backward_double(const GapParameters p) {
  cxr::gpu::masked_gap_backward_of<double>(p);
}
