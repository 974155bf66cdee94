// SPDX-License-Identifier: Apache-2.0
// Host side: makes the tensor map of a row-major matrix that tma_load_2d reads in swizzled boxes.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::hopper {

// rows x columns elements, `columns` contiguous; row_bytes from row to row, 0: without a gap; that and the
// pointer must be multiples of 16.
// The box is box_rows x (a line of 128 or 64 bytes of a row); it lands in shared memory as box_rows lines, in
// the swizzle of that length.
inline cudaError_t make_map(CUtensorMap* map, const void* data, CUtensorMapDataType type,
                            uint32_t element_bytes, uint64_t rows, uint64_t columns, uint32_t box_rows,
                            uint64_t row_bytes = 0, uint32_t line_bytes = 128) {
  static const auto encode = []() -> decltype(&cuTensorMapEncodeTiled) {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                         &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess)
      return nullptr;
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t extent[2] = {columns, rows};
  const cuuint64_t pitch[1] = {row_bytes != 0 ? row_bytes : columns * element_bytes};
  const cuuint32_t box[2] = {line_bytes / element_bytes, box_rows};
  const cuuint32_t step[2] = {1, 1};
  const CUresult result =
      encode(map, type, 2, const_cast<void*>(data), extent, pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
             line_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t make_map_8bit(CUtensorMap* map, const void* data, uint64_t rows, uint64_t columns,
                                 uint32_t box_rows, uint32_t line_bytes = 128) {
  return make_map(map, data, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, rows, columns, box_rows, 0, line_bytes);
}
inline cudaError_t make_map_bf16(CUtensorMap* map, const void* data, uint64_t rows, uint64_t columns,
                                 uint32_t box_rows, uint64_t row_bytes = 0) {
  return make_map(map, data, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, rows, columns, box_rows, row_bytes);
}

}  // namespace nibble::hopper
