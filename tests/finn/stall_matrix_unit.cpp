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
  Limb word[4] = {0}, found[1] = {0};  // an input of up to 128 bits, an output of 16
  long given = 0, taken = 0;
  for (long cycle = 0; cycle < 4000; cycle++) {
    rtl->reset(cycle < 16);
    bool offers = cycle >= 32 && cycle < 3000, takes = cycle % (3 * stall) >= stall;
    word[0] = given % 16;  // the first activation; the others are 0, all weights are 1
    rtl->set_input(0, offers, word);
    rtl->set_output_ready(0, takes);
    rtl->settle();
    bool read = offers && rtl->input_ready(0), written = takes && rtl->output_valid(0);
    if (written) {
      rtl->output_word(0, found);
      if (static_cast<long>(found[0] & 0xff) != taken % 16)
        return std::printf("output %ld is %ld\n", taken, static_cast<long>(found[0] & 0xff)), 1;
      taken++;
    }
    rtl->clock();
    given += read;
  }
  std::printf("%ld %ld\n", given, taken);
  return given != taken;
}
