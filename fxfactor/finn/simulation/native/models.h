// Models of the layers that FINN has in HLS only: what they compute and the order and number of their words are FINN's; one
// iteration of the loop takes one cycle. The depth of an HLS pipeline is not modelled: a result leaves one cycle later.
#pragma once
#include <cstdint>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#include "layer.h"

using Word = std::vector<Limb>;

// Elements of a word: `bits` each, in two's complement where `is_signed`.
struct Elements {
  int bits = 1, count = 1;
  bool is_signed = false;
  int limbs() const { return (bits * count + 31) / 32; }

  int64_t get(const Word& word, int index) const {
    uint64_t value = 0;
    for (int bit = 0; bit < bits; bit++) {
      int at = index * bits + bit;
      value |= static_cast<uint64_t>(word[at / 32] >> (at % 32) & 1) << bit;
    }
    if (is_signed && bits < 64 && (value >> (bits - 1) & 1)) value |= ~uint64_t{0} << bits;
    return static_cast<int64_t>(value);
  }

  void set(Word& word, int index, int64_t value) const {
    for (int bit = 0; bit < bits; bit++) {
      int at = index * bits + bit;
      Limb mask = Limb{1} << (at % 32);
      word[at / 32] = (static_cast<uint64_t>(value) >> bit & 1) ? word[at / 32] | mask : word[at / 32] & ~mask;
    }
  }

  Word zeros() const { return Word(limbs(), 0); }
};

// A loop of iterations. Each reads at most one word of every input and writes at most one of every output.
class Model : public Layer {
 public:
  Model(std::vector<Elements> in, std::vector<Elements> out)
      : in(std::move(in)), out(std::move(out)), words(this->in.size()), valid(this->in.size()), ready(this->out.size()),
        waiting(this->out.size()) {
    for (size_t port = 0; port < words.size(); port++) words[port] = this->in[port].zeros();
  }

  void reset(bool) override {}
  void set_input(int port, bool is_valid, const Limb* word) override {
    valid[port] = is_valid;
    if (is_valid) words[port].assign(word, word + in[port].limbs());
  }
  void set_output_ready(int port, bool is_ready) override { ready[port] = is_ready; }
  void settle() override {
    fires = true;
    for (size_t port = 0; port < in.size(); port++) fires = fires && (!reads(port) || valid[port]);
    for (size_t port = 0; port < out.size(); port++) fires = fires && (!writes(port) || waiting[port].size() < 2);
  }
  bool input_ready(int port) override { return fires && reads(port); }
  bool output_valid(int port) override { return !waiting[port].empty(); }
  void output_word(int port, Limb* word) override {
    const Word& front = waiting[port].front();
    std::copy(front.begin(), front.end(), word);
  }
  void clock() override {
    for (size_t port = 0; port < out.size(); port++)
      if (ready[port] && !waiting[port].empty()) waiting[port].pop_front();
    if (fires) iterate();
  }

 protected:
  virtual bool reads(int port) = 0;   // whether this iteration needs a word of an input
  virtual bool writes(int port) = 0;  // whether this iteration gives a word to an output
  virtual void iterate() = 0;
  void write(int port, const Word& word) { waiting[port].push_back(word); }
  void write(int port, const int64_t* values) {
    Word word = out[port].zeros();
    for (int index = 0; index < out[port].count; index++) out[port].set(word, index, values[index]);
    write(port, word);
  }

  std::vector<Elements> in, out;
  std::vector<Word> words;

 private:
  std::vector<char> valid, ready;
  std::vector<std::deque<Word>> waiting;
  bool fires = false;
};

// DuplicateStreams: every word goes to all outputs.
class Duplicate : public Model {
  using Model::Model;
  bool reads(int) override { return true; }
  bool writes(int) override { return true; }
  void iterate() override {
    for (size_t port = 0; port < out.size(); port++) write(port, words[0]);
  }
};

// Elementwise operation of two streams, or of one and a constant that repeats after `constants.size()` elements.
class Elementwise : public Model {
 public:
  Elementwise(std::vector<Elements> in, std::vector<Elements> out, std::string operation, std::vector<int64_t> constants,
              bool constant_first)
      : Model(std::move(in), std::move(out)), operation(std::move(operation)), constants(std::move(constants)),
        constant_first(constant_first) {}

 private:
  bool reads(int) override { return true; }
  bool writes(int) override { return true; }
  void iterate() override {
    Word word = out[0].zeros();
    for (int index = 0; index < out[0].count; index++) {
      int64_t a = in[0].get(words[0], index);
      int64_t b = constants.empty() ? in[1].get(words[1], index) : constants[at++ % constants.size()];
      if (constant_first) std::swap(a, b);
      out[0].set(word, index, operation == "Add" ? a + b : operation == "Sub" ? a - b : a * b);
    }
    write(0, word);
  }
  std::string operation;
  std::vector<int64_t> constants;
  bool constant_first;
  size_t at = 0;
};

// StreamingSplit and StreamingConcat: `folds` words of one side after the other, for every pixel.
class Distribute : public Model {
 public:
  Distribute(std::vector<Elements> in, std::vector<Elements> out, std::vector<int64_t> folds)
      : Model(std::move(in), std::move(out)), folds(std::move(folds)) {}

 protected:
  bool reads(int port) override { return in.size() == 1 || port == turn; }
  bool writes(int port) override { return out.size() == 1 || port == turn; }
  void iterate() override {
    int source = in.size() == 1 ? 0 : turn, target = out.size() == 1 ? 0 : turn;
    Word word = out[target].zeros();
    for (int index = 0; index < out[target].count; index++) out[target].set(word, index, in[source].get(words[source], index));
    write(target, word);
    if (++done == folds[turn]) {
      done = 0;
      turn = (turn + 1) % static_cast<int>(folds.size());
    }
  }

 private:
  std::vector<int64_t> folds;
  int turn = 0;
  int64_t done = 0;
};

// UpsampleNearestNeighbour and FMPadding_Pixel: a map of `height` × `width` pixels of `folds` words; one pixel of each
// `down` × `across` is read, and the others are the same again, or zeros.
class Enlarge : public Model {
 public:
  Enlarge(std::vector<Elements> in, std::vector<Elements> out, int64_t height, int64_t width, int64_t folds, int64_t down,
          int64_t across, bool zeros)
      : Model(std::move(in), std::move(out)), height(height), width(width), folds(folds), down(down), across(across),
        zeros(zeros), row((width + across - 1) / across * folds) {}

 private:
  bool reads(int) override { return step / folds / width % down == 0 && step / folds % width % across == 0; }
  bool writes(int) override { return true; }
  void iterate() override {
    Word& held = row[step / folds % width / across * folds + step % folds];
    if (reads(0)) held = words[0];
    write(0, zeros && !reads(0) ? out[0].zeros() : held);
    step = (step + 1) % (height * width * folds);
  }
  int64_t height, width, folds, down, across;
  bool zeros;
  std::vector<Word> row;
  int64_t step = 0;
};

// GlobalAccPool: sums over all pixels, then one word for each fold of the channels.
class GlobalSum : public Model {
 public:
  GlobalSum(std::vector<Elements> in, std::vector<Elements> out, int64_t pixels, int64_t folds)
      : Model(std::move(in), std::move(out)), pixels(pixels), folds(folds), sums(folds * this->in[0].count) {}

 private:
  bool reads(int) override { return step < pixels * folds; }
  bool writes(int) override { return step >= pixels * folds; }
  void iterate() override {
    int64_t* sum = &sums[step % folds * in[0].count];
    Word word = out[0].zeros();
    for (int index = 0; index < in[0].count; index++) {
      if (reads(0)) {
        sum[index] += in[0].get(words[0], index);
      } else {
        out[0].set(word, index, sum[index]);
        sum[index] = 0;
      }
    }
    if (writes(0)) write(0, word);
    step = (step + 1) % ((pixels + 1) * folds);
  }
  int64_t pixels, folds, step = 0;
  std::vector<int64_t> sums;
};

// Pool: the largest value or the sum of `positions` words in a row.
class Pool : public Model {
 public:
  Pool(std::vector<Elements> in, std::vector<Elements> out, bool largest, int64_t positions)
      : Model(std::move(in), std::move(out)), largest(largest), positions(positions), values(this->in[0].count) {}

 private:
  bool reads(int) override { return true; }
  bool writes(int) override { return step == positions - 1; }
  void iterate() override {
    for (int index = 0; index < in[0].count; index++) {
      int64_t value = in[0].get(words[0], index), &held = values[index];
      held = step == 0 ? value : largest ? std::max(held, value) : held + value;
    }
    if (writes(0)) write(0, values.data());
    step = (step + 1) % positions;
  }
  bool largest;
  int64_t positions, step = 0;
  std::vector<int64_t> values;
};

// VVAU: output channel fold·PE + p is a dot product over the positions of channel fold·PE + p alone.
// `weights`: (channels, positions); a word holds SIMD positions of PE channels, the channel running fastest.
class VectorUnit : public Model {
 public:
  VectorUnit(std::vector<Elements> in, std::vector<Elements> out, int64_t channels, int64_t positions,
             std::vector<int64_t> weights)
      : Model(std::move(in), std::move(out)), channels(channels), positions(positions), weights(std::move(weights)),
        pe(this->out[0].count), simd(this->in[0].count / pe), sums(pe) {}

 private:
  bool reads(int) override { return true; }
  bool writes(int) override { return at + simd == positions; }
  void iterate() override {
    for (int64_t s = 0; s < simd; s++)
      for (int64_t p = 0; p < pe; p++)
        sums[p] += in[0].get(words[0], s * pe + p) * weights[(channel + p) * positions + at + s];
    if (writes(0)) {
      write(0, sums.data());
      sums.assign(pe, 0);
      channel = (channel + pe) % channels;
    }
    at = (at + simd) % positions;
  }
  int64_t channels, positions;
  std::vector<int64_t> weights;
  int64_t pe, simd;
  std::vector<int64_t> sums;
  int64_t channel = 0, at = 0;
};

// MVAU: reads a vector of `rows` in words of SIMD, keeps it, and gives the columns of `weights` (rows, columns) PE at a time.
class MatrixUnit : public Model {
 public:
  MatrixUnit(std::vector<Elements> in, std::vector<Elements> out, int64_t rows, int64_t columns, std::vector<int64_t> weights)
      : Model(std::move(in), std::move(out)), rows(rows), columns(columns), weights(std::move(weights)),
        pe(this->out[0].count), simd(this->in[0].count), vector(rows), sums(pe) {}

 private:
  bool reads(int) override { return column == 0; }
  bool writes(int) override { return row + simd == rows; }
  void iterate() override {
    for (int64_t s = 0; s < simd; s++) {
      if (column == 0) vector[row + s] = in[0].get(words[0], s);
      for (int64_t p = 0; p < pe; p++) sums[p] += vector[row + s] * weights[(row + s) * columns + column + p];
    }
    if (writes(0)) {
      write(0, sums.data());
      sums.assign(pe, 0);
      column = (column + pe) % columns;
    }
    row = (row + simd) % rows;
  }
  int64_t rows, columns;
  std::vector<int64_t> weights;
  int64_t pe, simd;
  std::vector<int64_t> vector, sums;
  int64_t row = 0, column = 0;
};
