// Sum the positions of every channel of a map, and weigh its channels to a few, in one pass.
//
// x (samples, channels, positions); weights (channels, rows); sums (samples, blocks, channels);
// y (samples, rows, positions). PyTorch's compiler builds this file for the processor at hand;
// `native.py` calls it, and has the plain form.

#include <torch/csrc/inductor/cpp_prefix.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#ifdef __GNUC__
#define FETCH(address) __builtin_prefetch(address)
#else
#define FETCH(address)
#endif

namespace {

using Vector = at::vec::Vectorized<float>;
constexpr int64_t LANES = Vector::size();

// channels of a tile, which the innermost cache holds for up to 192 positions, and floats of a line
constexpr int64_t DEPTH = 16, LINE = 16;

// what sixteen registers hold with what is read: four rows of three vectors
constexpr int ROWS = 4, WIDTH = 3;

struct Next {  // the tile that comes after, of which every call fetches one column of lines
  const float* start;
  int64_t lines;
};

template <int... i>
using Steps = std::integer_sequence<int, i...>;

// Steps, and not loops: the compiler would keep the totals of a loop in memory. `i` counts the
// totals, row after row, and `j` the vectors of a row.
template <int rows, int width, bool fetches, int... i, int... j>
inline void weigh(const float* x, int64_t positions, const float* weights, int64_t all_rows,
                  int64_t channels, float* y, const float* fetched, Steps<i...>, Steps<j...>) {
  Vector total[] = {Vector::loadu(y + i / width * positions + i % width * LANES)...};
  for (int64_t c = 0; c < channels; c++) {
    if (fetches) FETCH(fetched + c * positions);
    const Vector read[] = {Vector::loadu(x + c * positions + j * LANES)...};
    const float* row = weights + c * all_rows;
    ((total[i] = at::vec::fmadd(Vector(row[i / width]), read[i % width], total[i])), ...);
  }
  (total[i].store(y + i / width * positions + i % width * LANES), ...);
}

template <int rows, int width, bool fetches>
inline void weigh(const float* x, int64_t positions, const float* weights, int64_t all_rows,
                  int64_t channels, float* y, const float* fetched) {
  weigh<rows, width, fetches>(x, positions, weights, all_rows, channels, y, fetched,
                              std::make_integer_sequence<int, rows * width>{},
                              std::make_integer_sequence<int, width>{});
}

template <int rows>
void weigh_rows(const float* x, int64_t positions, int64_t length, const float* weights,
                int64_t all_rows, int64_t channels, float* y, Next& next) {
  int64_t p = 0;
  for (; p + WIDTH * LANES <= length; p += WIDTH * LANES) {
    if (next.lines > 0)
      weigh<rows, WIDTH, true>(x + p, positions, weights, all_rows, channels, y + p, next.start);
    else
      weigh<rows, WIDTH, false>(x + p, positions, weights, all_rows, channels, y + p, nullptr);
    next.start += LINE, next.lines--;
  }
  for (; p + LANES <= length; p += LANES)
    weigh<rows, 1, false>(x + p, positions, weights, all_rows, channels, y + p, nullptr);
  for (; p < length; p++)
    for (int r = 0; r < rows; r++)
      for (int64_t c = 0; c < channels; c++)
        y[r * positions + p] += weights[c * all_rows + r] * x[c * positions + p];
}

float sum(const float* x, int64_t length) {
  Vector even(0.f), odd(0.f);
  int64_t p = 0;
  for (; p + 2 * LANES <= length; p += 2 * LANES) {
    even = even + Vector::loadu(x + p);
    odd = odd + Vector::loadu(x + p + LANES);
  }
  float lanes[LANES], total = 0;
  (even + odd).store(lanes);
  for (float lane : lanes) total += lane;
  for (; p < length; p++) total += x[p];
  return total;
}

void walk_block(const float* x, const float* weights, float* sums, float* y, int64_t channels,
                int64_t rows, int64_t positions, int64_t length, bool last) {
  for (int64_t r = 0; r < rows; r++) std::fill(y + r * positions, y + r * positions + length, 0.f);
  for (int64_t c = 0; c < channels; c += DEPTH) {
    const int64_t depth = std::min(DEPTH, channels - c);
    const float* tile = x + c * positions;
    const bool ends = c + DEPTH >= channels;
    Next next{ends ? x + length : tile + DEPTH * positions,
              ends && last ? 0 : (length + LINE - 1) / LINE};
    for (int64_t d = 0; d < depth; d++) sums[c + d] = sum(tile + d * positions, length);
    int64_t r = 0;
    for (; r + ROWS <= rows; r += ROWS)
      weigh_rows<ROWS>(tile, positions, length, weights + c * rows + r, rows, depth,
                       y + r * positions, next);
    for (; r < rows; r++)
      weigh_rows<1>(tile, positions, length, weights + c * rows + r, rows, depth,
                    y + r * positions, next);
  }
}

}  // namespace

extern "C" void kernel(const float* x, const float* weights, float* sums, float* y,
                       const int64_t samples, const int64_t channels, const int64_t rows,
                       const int64_t positions, const int64_t blocks) {
  // blocks of about one size: a short one would have little use of the registers
  const int64_t step = WIDTH * LANES, share = (positions + blocks - 1) / blocks;
  const int64_t block = (share + step - 1) / step * step;
#pragma omp parallel for
  for (int64_t i = 0; i < samples * blocks; i++) {
    const int64_t sample = i / blocks, p = std::min(i % blocks * block, positions);
    const int64_t length = std::min(block, positions - p);
    walk_block(x + sample * channels * positions + p, weights, sums + i * channels,
               y + sample * rows * positions + p, channels, rows, positions, length,
               p + length >= positions);
  }
}
