// Rows of weights: as files store them, as float32, and as strips pack them for the kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace glimmer {

// Bytes of a stored row of `cols` weights, which fill whole blocks.
size_t row_bytes(DType dtype, int cols);

// One stored row to float32, [cols].
void decode_row(DType dtype, const uint8_t* row, int cols, float* out);

// float32, [cols], to one stored row, rounded as GGML's reference quantisers do. Only for types
// that info(dtype).writable allows.
void encode_row(DType dtype, const float* x, int cols, uint8_t* row);

// One stored row into its place, 0..15, of a strip.
void place_row(DType dtype, const uint8_t* row, int cols, int place, uint8_t* strip);

// The row at a place of a strip to float32, [cols]: what decode_row gives for it.
void unpack_row(DType dtype, const uint8_t* strip, int cols, int place, float* out);

}  // namespace glimmer
