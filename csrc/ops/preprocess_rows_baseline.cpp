// preprocess's inner loops for every CPU of the architecture.
#include "ops/preprocess_rows.inc"

const ptxsdk::RowKernels ptxsdk::rows_baseline = ptxsdk::compiled_rows;
