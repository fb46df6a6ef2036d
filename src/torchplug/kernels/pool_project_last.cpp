// What `pool_project.cpp` does, for maps whose channels lie together.
//
// x (samples, positions, channels); weights (channels, rows); sums (samples, blocks, channels);
// y (samples, positions, rows).

#include <torch/csrc/inductor/cpp_prefix.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace {

using Vector = at::vec::Vectorized<float>;
constexpr int64_t LANES = Vector::size();

// of sixteen registers: totals, beside two vectors of weights and one value of the map
constexpr int TOTALS = 12, WIDTH = 2;

struct Weights {  // rows filled up with zeros to whole vectors
  std::vector<float> values;
  int64_t channels, rows, filled;

  Weights(const float* given, int64_t channels, int64_t rows)
      : channels(channels), rows(rows), filled((rows + LANES - 1) / LANES * LANES) {
    values.assign(channels * filled, 0.f);
    for (int64_t c = 0; c < channels; c++)
      std::copy(given + c * rows, given + (c + 1) * rows, values.data() + c * filled);
  }
};

template <int... i>
using Steps = std::integer_sequence<int, i...>;

// Steps, and not loops: the compiler would keep the totals of a loop in memory. `i` counts the
// totals, position after position, and `j` the vectors of one.
template <int width, int... i, int... j>
inline void weigh(const float* x, const Weights& weights, int64_t row, float* y, Steps<i...>,
                  Steps<j...>) {
  Vector total[] = {((void)i, Vector(0.f))...};
  const float* values = weights.values.data() + row;
  for (int64_t c = 0; c < weights.channels; c++, values += weights.filled) {
    const Vector read[] = {Vector::loadu(values + j * LANES)...};
    ((total[i] = at::vec::fmadd(Vector(x[i / width * weights.channels + c]), read[i % width],
                                total[i])),
     ...);
  }
  (total[i].store(y + i / width * weights.rows + row + i % width * LANES,
                  std::min(LANES, weights.rows - row - i % width * LANES)),
   ...);
}

template <int width>
void weigh_positions(const float* x, const Weights& weights, int64_t row, int64_t positions,
                     float* y) {
  constexpr int together = TOTALS / width;
  const std::make_integer_sequence<int, width> vectors;
  for (; positions >= together; positions -= together) {
    weigh<width>(x, weights, row, y, std::make_integer_sequence<int, TOTALS>{}, vectors);
    x += together * weights.channels, y += together * weights.rows;
  }
  for (; positions > 0; positions--) {
    weigh<width>(x, weights, row, y, vectors, vectors);
    x += weights.channels, y += weights.rows;
  }
}

void add_positions(const float* x, int64_t channels, int64_t positions, float* sums) {
  int64_t c = 0;
  for (; c + LANES <= channels; c += LANES) {
    Vector total = Vector::loadu(sums + c);
    for (int64_t p = 0; p < positions; p++) total = total + Vector::loadu(x + p * channels + c);
    total.store(sums + c);
  }
  for (; c < channels; c++)
    for (int64_t p = 0; p < positions; p++) sums[c] += x[p * channels + c];
}

void walk_block(const float* x, const Weights& weights, float* sums, float* y, int64_t positions) {
  const int64_t channels = weights.channels;
  std::fill(sums, sums + channels, 0.f);
  for (int64_t p = 0; p < positions; p += TOTALS) {
    const int64_t some = std::min<int64_t>(TOTALS, positions - p);
    add_positions(x + p * channels, channels, some, sums);
    int64_t row = 0;
    for (; row + LANES < weights.rows; row += WIDTH * LANES)
      weigh_positions<WIDTH>(x + p * channels, weights, row, some, y + p * weights.rows);
    if (row < weights.rows)
      weigh_positions<1>(x + p * channels, weights, row, some, y + p * weights.rows);
  }
}

}  // namespace

extern "C" void kernel(const float* x, const float* weights, float* sums, float* y,
                       const int64_t samples, const int64_t channels, const int64_t rows,
                       const int64_t positions, const int64_t blocks) {
  const Weights given(weights, channels, rows);
  const int64_t share = (positions + blocks - 1) / blocks;
  const int64_t block = (share + TOTALS - 1) / TOTALS * TOTALS;
#pragma omp parallel for
  for (int64_t i = 0; i < samples * blocks; i++) {
    const int64_t sample = i / blocks, p = std::min(i % blocks * block, positions);
    const int64_t first = sample * positions + p;
    walk_block(x + first * channels, given, sums + i * channels, y + first * rows,
               std::min(block, positions - p));
  }
}
