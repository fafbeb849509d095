// Vectors of one register, for whatever instruction set this translation unit is compiled.
//
// GCC/Clang vector extensions carry the arithmetic; intrinsics appear only where the language has no
// word: fused multiply-add (contraction is off everywhere, so that a threshold cuts the same pixels
// on every machine), min/max that drop NaN, comparisons to bits, half precision.
//
// Everything lives in a namespace named after the instruction set. Inline functions of two translation
// units would otherwise share one symbol, and the linker could keep the AVX-512 copy for all.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef CXR_ISA
#error "CXR_ISA names the instruction set this file is compiled for"
#endif

namespace cxr::CXR_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// 2-byte floats as storage; all arithmetic is in float.
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
constexpr int kFloats = kLanes<float>;

typedef uint32_t UIntVec __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfBitsVec __attribute__((vector_size(kVectorBytes / 2)));

template <class T>
inline T least(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T greatest(T a, T b) {
  return a < b ? b : a;
}

template <class To, class From>
inline To bits_of(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &value, sizeof(to));
  return to;
}

template <class Acc>
inline Vec<Acc> broadcast(Acc value) {
  return value - Vec<Acc>{};
}

// ---- conversions of one value ----

inline float to_float(Bfloat x) { return bits_of<float>(static_cast<uint32_t>(x.bits) << 16); }

inline float to_float(Half x) {
  // Shift exponent and mantissa into place; a power of two repairs the bias, subnormals included.
  uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  if (magnitude >= 0x0f800000u) {
    magnitude |= 0x7f800000u;  // infinity and NaN
  } else {
    magnitude = bits_of<uint32_t>(bits_of<float>(magnitude) * 0x1p112f);
  }
  return bits_of<float>(magnitude | static_cast<uint32_t>(x.bits & 0x8000) << 16);
}
inline float to_float(float x) { return x; }

template <class T>
inline T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline Bfloat from_float<Bfloat>(float x) {
  uint32_t u = bits_of<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return Bfloat{static_cast<uint16_t>((u >> 16) | 0x40)};
  return Bfloat{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};
}
template <>
inline Half from_float<Half>(float x) {
  uint32_t u = bits_of<uint32_t>(x);
  uint32_t sign = u >> 16 & 0x8000;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return Half{static_cast<uint16_t>(sign | 0x7e00)};
  if (u >= 0x477ff000u) return Half{static_cast<uint16_t>(sign | 0x7c00)};  // rounds past 65504
  if (u < 0x38800000u) {  // subnormal half: adding 0.5 makes the hardware round at bit 2^-24
    uint32_t rounded = bits_of<uint32_t>(bits_of<float>(u) + 0.5f) - 0x3f000000u;
    return Half{static_cast<uint16_t>(sign | rounded)};
  }
  u += 0xfffu + (u >> 13 & 1);
  return Half{static_cast<uint16_t>(sign | (u - 0x38000000u) >> 13)};
}

template <class Acc, class T>
inline Acc to_acc(T x) {
  if constexpr (sizeof(Acc) == 8) {
    return x;
  } else {
    return to_float(x);
  }
}

// ---- loads and stores of a register, with conversion to and from the accumulator's type ----

template <class Acc, class T>
inline Vec<Acc> load(const T* p) {
  Vec<Acc> v;
  if constexpr (sizeof(T) == sizeof(Acc)) {
    std::memcpy(&v, p, sizeof(v));
    return v;
  } else {
    HalfBitsVec h;
    std::memcpy(&h, p, sizeof(h));
    if constexpr (__is_same(T, Bfloat)) {
      UIntVec u = __builtin_convertvector(h, UIntVec) << 16;
      return bits_of<Vec<Acc>>(u);
    } else {
#if defined(__AVX512F__)
      return bits_of<Vec<Acc>>(_mm512_cvtph_ps(bits_of<__m256i>(h)));
#elif defined(__F16C__)
      return bits_of<Vec<Acc>>(_mm256_cvtph_ps(bits_of<__m128i>(h)));
#elif defined(__aarch64__)
      return bits_of<Vec<Acc>>(vcvt_f32_f16(bits_of<float16x4_t>(h)));
#else
      for (int i = 0; i < kLanes<Acc>; ++i) v[i] = to_float(p[i]);
      return v;
#endif
    }
  }
}

template <class Acc, class T>
inline void store(T* p, Vec<Acc> v) {
  if constexpr (sizeof(T) == sizeof(Acc)) {
    std::memcpy(p, &v, sizeof(v));
  } else {
    for (int i = 0; i < kLanes<Acc>; ++i) p[i] = from_float<T>(v[i]);
  }
}

// The first n lanes; the others are 0 (load) or left alone (store).
template <class Acc, class T>
inline Vec<Acc> load_partial(const T* p, int n) {
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) {
    return bits_of<Vec<Acc>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
  }
#endif
  alignas(kVectorBytes) T buffer[kLanes<Acc>] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load<Acc>(buffer);
}
template <class Acc, class T>
inline void store_partial(T* p, Vec<Acc> v, int n) {
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), bits_of<__m512>(v));
    return;
  }
#endif
  alignas(kVectorBytes) T buffer[kLanes<Acc>];
  store<Acc>(buffer, v);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

// row[from, to) = value, for runs of a few pixels: whole registers, then the rest, with no call.
template <class T>
inline void fill_run(T* row, int64_t from, int64_t to, T value) {
  typedef T Values __attribute__((vector_size(kVectorBytes)));
  constexpr int64_t lanes = kVectorBytes / static_cast<int64_t>(sizeof(T));
  const Values values = value - Values{};
  for (; from + lanes <= to; from += lanes) std::memcpy(row + from, &values, sizeof(values));
#if defined(__AVX512BW__)
  const uint64_t rest = (uint64_t{1} << (to - from)) - 1;
  if constexpr (sizeof(T) == 1) {
    _mm512_mask_storeu_epi8(row + from, rest, bits_of<__m512i>(values));
  } else {
    static_assert(sizeof(T) == 4, "bytes or words");
    _mm512_mask_storeu_epi32(row + from, static_cast<__mmask16>(rest), bits_of<__m512i>(values));
  }
#else
  for (; from < to; ++from) row[from] = value;
#endif
}

// ---- arithmetic without an operator ----

template <class Acc>
inline Vec<Acc> multiply_add(Vec<Acc> a, Vec<Acc> b, Vec<Acc> c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Acc) == 4) {
    return bits_of<Vec<Acc>>(
        _mm512_fmadd_ps(bits_of<__m512>(a), bits_of<__m512>(b), bits_of<__m512>(c)));
  } else {
    return bits_of<Vec<Acc>>(
        _mm512_fmadd_pd(bits_of<__m512d>(a), bits_of<__m512d>(b), bits_of<__m512d>(c)));
  }
#elif defined(__FMA__)
  if constexpr (sizeof(Acc) == 4) {
    return bits_of<Vec<Acc>>(
        _mm256_fmadd_ps(bits_of<__m256>(a), bits_of<__m256>(b), bits_of<__m256>(c)));
  } else {
    return bits_of<Vec<Acc>>(
        _mm256_fmadd_pd(bits_of<__m256d>(a), bits_of<__m256d>(b), bits_of<__m256d>(c)));
  }
#elif defined(__aarch64__)
  if constexpr (sizeof(Acc) == 4) {
    return bits_of<Vec<Acc>>(
        vfmaq_f32(bits_of<float32x4_t>(c), bits_of<float32x4_t>(a), bits_of<float32x4_t>(b)));
  } else {
    return bits_of<Vec<Acc>>(
        vfmaq_f64(bits_of<float64x2_t>(c), bits_of<float64x2_t>(a), bits_of<float64x2_t>(b)));
  }
#else
  return a * b + c;
#endif
}

// Makes the compiler load v once: it would rather fold the load into every instruction that uses v.
template <class V>
inline V in_register(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// The sum of all lanes, in pairs.
template <class Acc>
inline Acc sum_lanes(Vec<Acc> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Acc) == 4) {
    return _mm512_reduce_add_ps(bits_of<__m512>(v));
  } else {
    return _mm512_reduce_add_pd(bits_of<__m512d>(v));
  }
#else
  Acc lanes[kLanes<Acc>];
  std::memcpy(lanes, &v, sizeof(v));
  for (int half = kLanes<Acc> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
#endif
}

// min/max that return `best` where x is NaN.
inline Vec<float> min_number(Vec<float> x, Vec<float> best) {
#if defined(__AVX512F__)
  return bits_of<Vec<float>>(_mm512_min_ps(bits_of<__m512>(x), bits_of<__m512>(best)));
#elif defined(__AVX2__)
  return bits_of<Vec<float>>(_mm256_min_ps(bits_of<__m256>(x), bits_of<__m256>(best)));
#elif defined(__SSE2__)
  return bits_of<Vec<float>>(_mm_min_ps(bits_of<__m128>(x), bits_of<__m128>(best)));
#elif defined(__aarch64__)
  return bits_of<Vec<float>>(vminnmq_f32(bits_of<float32x4_t>(x), bits_of<float32x4_t>(best)));
#else
  return x < best ? x : best;
#endif
}
inline Vec<float> max_number(Vec<float> x, Vec<float> best) {
#if defined(__AVX512F__)
  return bits_of<Vec<float>>(_mm512_max_ps(bits_of<__m512>(x), bits_of<__m512>(best)));
#elif defined(__AVX2__)
  return bits_of<Vec<float>>(_mm256_max_ps(bits_of<__m256>(x), bits_of<__m256>(best)));
#elif defined(__SSE2__)
  return bits_of<Vec<float>>(_mm_max_ps(bits_of<__m128>(x), bits_of<__m128>(best)));
#elif defined(__aarch64__)
  return bits_of<Vec<float>>(vmaxnmq_f32(bits_of<float32x4_t>(x), bits_of<float32x4_t>(best)));
#else
  return x > best ? x : best;
#endif
}

inline float min_lane(Vec<float> v) {
  float best = v[0];
  for (int i = 1; i < kFloats; ++i) best = least(best, v[i]);
  return best;
}
inline float max_lane(Vec<float> v) {
  float best = v[0];
  for (int i = 1; i < kFloats; ++i) best = greatest(best, v[i]);
  return best;
}

// Bit i of the result is lane i of (v >= cut), or (v == cut); false where v is NaN.
#if defined(__AVX512F__)
inline uint64_t bits_ge(Vec<float> v, Vec<float> cut) {
  return _mm512_cmp_ps_mask(bits_of<__m512>(v), bits_of<__m512>(cut), _CMP_GE_OQ);
}
inline uint64_t bits_eq(Vec<float> v, Vec<float> cut) {
  return _mm512_cmp_ps_mask(bits_of<__m512>(v), bits_of<__m512>(cut), _CMP_EQ_OQ);
}
#else
inline uint64_t sign_bits(UIntVec lanes) {
#if defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(bits_of<__m256>(lanes)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(bits_of<__m128>(lanes)));
#else
  return (lanes[0] & 1) | (lanes[1] & 2) | (lanes[2] & 4) | (lanes[3] & 8);
#endif
}
inline uint64_t bits_ge(Vec<float> v, Vec<float> cut) { return sign_bits(UIntVec(v >= cut)); }
inline uint64_t bits_eq(Vec<float> v, Vec<float> cut) { return sign_bits(UIntVec(v == cut)); }
#endif

// Bit i of the result is byte i != 0, for 64 bytes.
inline uint64_t nonzero_bits(const uint8_t* p) {
#if defined(__AVX512BW__)
  __m512i v = _mm512_loadu_si512(p);
  return _mm512_test_epi8_mask(v, v);
#elif defined(__AVX2__)
  const __m256i zero = _mm256_setzero_si256();
  __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
  uint32_t low = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(a, zero)));
  uint32_t high = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(b, zero)));
  return ~(static_cast<uint64_t>(high) << 32 | low);
#else
  uint64_t bits = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t bytes;
    std::memcpy(&bytes, p + 8 * i, 8);
    // Spread "not zero" to each byte's top bit, then gather the top bits with one multiplication.
    const uint64_t low7 = 0x7f7f7f7f7f7f7f7full;
    uint64_t top = (((bytes & low7) + low7) | bytes) & ~low7;
    bits |= ((top >> 7) * 0x0102040810204080ull >> 56) << (8 * i);
  }
  return bits;
#endif
}

}  // namespace cxr::CXR_ISA
