// All kernels, for the instruction set ANSER_ISA.
#include "kernels.h"
#include "simd.h"

// clang-format off
#include "elementwise.inl"
#include "multiply.inl"
#include "wkv.inl"
// clang-format on

#define ANSER_TABLE_OF(isa) kernels_##isa
#define ANSER_TABLE(isa) ANSER_TABLE_OF(isa)
#define ANSER_NAME_OF(isa) #isa
#define ANSER_NAME(isa) ANSER_NAME_OF(isa)

namespace anser {

const Kernels ANSER_TABLE(ANSER_ISA) = {
    ANSER_NAME(ANSER_ISA),
    ANSER_ISA::multiply_panels,
    ANSER_ISA::multiply_columns,
    ANSER_ISA::quantize,
    ANSER_ISA::pack_active,
    ANSER_ISA::layer_norm,
    ANSER_ISA::mix,
    ANSER_ISA::add,
    ANSER_ISA::tanh_rows,
    ANSER_ISA::sigmoid_rows,
    ANSER_ISA::relu_squared,
    ANSER_ISA::sum_rows,
    ANSER_ISA::wkv_head,
};

}  // namespace anser
