// stall_matrix_unit LAYER STALL: a matrix unit that gives an output in every cycle, whose reader stops for STALL cycles again and again.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

#include "layer.h"

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (!library) return std::puts(dlerror()), 2;
  Layer* rtl = reinterpret_cast<Layer* (*)(const char*)>(dlsym(library, "make_layer"))("unit");
  long stall = std::atol(arguments[2]);
  Limb word[1] = {0};
  long given = 0, taken = 0;
  for (long cycle = 0; cycle < 4000; cycle++) {
    rtl->reset(cycle < 16);
    bool offers = cycle >= 32 && cycle < 3000, takes = cycle % (3 * stall) >= stall;
    word[0] = given % 16;
    rtl->set_input(0, offers, word);
    rtl->set_output_ready(0, takes);
    rtl->settle();
    bool read = offers && rtl->input_ready(0), written = takes && rtl->output_valid(0);
    taken += written;
    rtl->clock();
    given += read;
  }
  std::printf("%ld %ld\n", given, taken);
  return 0;
}
