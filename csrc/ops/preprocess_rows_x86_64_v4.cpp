// preprocess's inner loops for AVX-512.
#include "ops/preprocess_rows.inc"

const ptxsdk::RowKernels ptxsdk::rows_x86_64_v4 = ptxsdk::compiled_rows;
