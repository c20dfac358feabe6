// A FIFO of any depth, cycle by cycle as FINN's fifo.sv up to where it turns to block RAM: words pass a memory and an output
// register, two cycles in all, and its outputs are functions of its state alone. Depths below 5 hold 5 words, as FINN's do.
#pragma once
#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "layer.h"

class Fifo {
 public:
  // depth 0: no limit
  Fifo(int64_t depth, int limbs) : memory_size(depth ? std::max<int64_t>(depth, 5) - 1 : 0), limbs(limbs), front(limbs) {}

  bool input_ready() const { return !memory_size || held < memory_size; }
  bool output_valid() const { return valid; }
  const Limb* output_word() const { return front.data(); }
  int64_t count() const { return held + valid; }

  void clock(bool push, const Limb* word, bool output_ready) {
    bool load = !valid || output_ready;
    bool pop = held > 0 && load;
    if (load) valid = pop;
    if (pop) {
      std::copy(memory.begin(), memory.begin() + limbs, front.begin());
      memory.erase(memory.begin(), memory.begin() + limbs);
      held--;
    }
    if (push) {
      memory.insert(memory.end(), word, word + limbs);
      held++;
    }
  }

 private:
  int64_t memory_size;
  int limbs;
  std::vector<Limb> front;
  std::deque<Limb> memory;
  int64_t held = 0;
  bool valid = false;
};
