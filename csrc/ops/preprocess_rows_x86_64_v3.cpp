// preprocess's inner loops for AVX2 and FMA.
#include "ops/preprocess_rows.inc"

const ptxsdk::RowKernels ptxsdk::rows_x86_64_v3 = ptxsdk::compiled_rows;
