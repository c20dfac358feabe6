// compare_fifo LAYER DEPTH: FINN's FIFO, compiled as a layer, beside fifo.h, with the same random traffic.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <random>

#include "fifo.h"

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (!library) return std::puts(dlerror()), 2;
  Layer* rtl = reinterpret_cast<Layer* (*)(const char*)>(dlsym(library, "make_layer"))("fifo");
  Fifo model(std::atoi(arguments[2]), 2);
  std::mt19937 random(1);
  Limb word[2] = {0, 0}, found[2] = {0, 0};
  rtl->reset(true);
  for (int cycle = 0; cycle < 16; cycle++) {
    rtl->set_input(0, false, word);
    rtl->set_output_ready(0, false);
    rtl->settle();
    rtl->clock();
  }
  rtl->reset(false);
  long passed = 0, most = 0;
  for (int cycle = 0; cycle < 10000; cycle++) {
    // phases in which it fills, empties, and is as fast as it can be
    int phase = cycle / 500 % 4;
    bool offers = phase == 3 || random() % 8 < (phase == 0 ? 7u : phase == 1 ? 2u : 4u);
    bool takes = phase == 3 || random() % 8 < (phase == 0 ? 1u : phase == 1 ? 7u : 4u);
    word[0] = random();
    word[1] = random() & 0xff;
    rtl->set_input(0, offers, word);
    rtl->set_output_ready(0, takes);
    rtl->settle();
    bool ready = rtl->input_ready(0), valid = rtl->output_valid(0);
    if (valid) rtl->output_word(0, found);
    if (ready != model.input_ready() || valid != model.output_valid() ||
        (valid && (found[0] != model.output_word()[0] || (found[1] & 0xff) != model.output_word()[1])))
      return std::printf("differs in cycle %d: ready %d %d, valid %d %d\n", cycle, ready, model.input_ready(), valid,
                         model.output_valid()), 1;
    passed += valid && takes;
    rtl->clock();
    model.clock(offers && ready, word, takes);
    most = std::max<long>(most, model.count());
  }
  std::printf("same %ld %ld\n", passed, most);
}
