// Compiled once for each instruction set, with CXR_ISA as its name and the flags that go with it.
#include "core/cam.hpp"
#include "core/heatmap_boxes.hpp"
#include "core/label_components.hpp"
#include "core/png_unfilter.hpp"
#include "core/resize.hpp"

#define CXR_TEXT_(x) #x
#define CXR_TEXT(x) CXR_TEXT_(x)

namespace cxr::CXR_ISA {

extern const Kernels table;
const Kernels table{
    CXR_TEXT(CXR_ISA), cam,           cam_backward,     mine_attention, masked_gap, masked_gap_backward,
    aggregate_heatmap, heatmap_boxes, label_components, mine_cam,       resize,     png_unfilter,
};

}  // namespace cxr::CXR_ISA
