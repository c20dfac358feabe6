// What the simulator asks of a hardware layer, be it FINN's RTL (compiled by Verilator) or a model in models.h.
#pragma once
#include <cstdint>
#include <cstring>

// Words of a stream: as many 32-bit limbs as the port needs, element 0 in the lowest bits.
using Limb = uint32_t;

// One clock cycle: set_input and set_output_ready for all ports, settle, read input_ready, output_valid and output_word,
// then clock. All layers stand between FIFOs whose outputs are registers, so no value passes through two layers in a cycle.
struct Layer {
  virtual ~Layer() = default;
  virtual void reset(bool active) = 0;
  virtual void set_input(int port, bool valid, const Limb* word) = 0;
  virtual void set_output_ready(int port, bool ready) = 0;
  virtual void settle() = 0;
  virtual bool input_ready(int port) = 0;
  virtual bool output_valid(int port) = 0;
  virtual void output_word(int port, Limb* word) = 0;
  virtual void clock() = 0;
  virtual bool stopped() { return false; }  // whether the layer's own checks ended it
};

// Ports of Verilator's classes are unsigned integers of 8 to 64 bits, or arrays of 32-bit words above; memory is little-endian.
template <typename Port>
inline void put(Port& port, const Limb* word) {
  std::memcpy(&port, word, sizeof(Port));
}
template <typename Port>
inline void get(const Port& port, Limb* word) {
  word[0] = 0;
  std::memcpy(word, &port, sizeof(Port));
}
