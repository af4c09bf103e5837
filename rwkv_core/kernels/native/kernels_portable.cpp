#define ANSER_ISA portable
#include "kernels.inl"
