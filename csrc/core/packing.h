// Rows of weights: as files store them, as float32, and as strips pack them for the kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "core/thread_pool.h"

namespace glimmer {

// Counts up whenever the bytes that pack_matrix makes change: files hold them.
inline constexpr int kPackedLayout = 1;

// Bytes of a stored row of `cols` weights, which fill whole blocks.
size_t row_bytes(DType dtype, int cols);

// One stored row to float32, [cols].
void decode_row(DType dtype, const uint8_t* row, int cols, float* out);

// float32, [cols], to one stored row, rounded as GGML's reference quantisers do. Only for types
// that info(dtype).writable allows.
void encode_row(DType dtype, const float* x, int cols, uint8_t* row);

// Bytes of a strip, 16 rows of `cols` weights packed; and of a matrix, whose last strip is whole.
size_t strip_bytes(DType dtype, int cols);
size_t matrix_bytes(DType dtype, int rows, int cols);

// One stored row into its place, 0..15, of a strip.
void place_row(DType dtype, const uint8_t* row, int cols, int place, uint8_t* strip);

// `num_rows` stored rows, at most 16 and one behind the other, into the first places of a strip:
// the same bytes as place_row gives, sooner where there are 16.
void place_rows(DType dtype, const uint8_t* rows, int num_rows, int cols, uint8_t* strip);

// A matrix stored as `dtype` to zeroed strips of type `kept`, converted where the two differ, by
// all threads.
void pack_matrix(DType dtype, const uint8_t* data, int rows, int cols, DType kept, uint8_t* packed,
                 ThreadPool& pool);

// Strips of one type to zeroed strips of another, by way of float32.
void convert_packed(DType dtype, const uint8_t* from, int rows, int cols, DType kept, uint8_t* to,
                    ThreadPool& pool);

// Scale and minimum of group `g`, 0..7, in the 12 bytes of a block of q4_k or q5_k.
void split_scale(const uint8_t* bytes, int g, int8_t& scale, int8_t& minimum);

// The row at a place of a strip to float32, [cols]: what decode_row gives for it.
void unpack_row(DType dtype, const uint8_t* strip, int cols, int place, float* out);

}  // namespace glimmer
