// Simulates a network of layers and FIFOs clock by clock: `simulator DESCRIPTION RESULT`. The description is written by
// fxfactor/finn/simulation/running.py, which also says what the fields mean; the result is JSON.
#include <dlfcn.h>
#include <unistd.h>

#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

#include "fifo.h"
#include "models.h"

namespace {

// Words that have to pass a stream, and what did.
struct Stream {
  std::string name;
  int64_t words_per_frame;
  int limbs, bits;
  std::vector<Limb> expected;
  Fifo fifo;
  int64_t passed = 0, peak = 0, held = 0, empty = 0, wrong = 0, first_wrong = -1, first_wrong_cycle = -1;
  int64_t watched = 0;  // cycles from the end of the first frame on this stream to the end of the last
  std::vector<int64_t> began, ended;  // cycle in which the first and the last word of each frame passed
  std::vector<Limb> found;
  std::vector<Limb> pushed;
  bool pushes = false, pops = false;

  Stream(std::string name, int64_t words, int limbs, int bits, int64_t depth)
      : name(std::move(name)), words_per_frame(words), limbs(limbs), bits(bits), fifo(depth, limbs), pushed(limbs) {}

  int64_t total() const { return static_cast<int64_t>(expected.size()) / limbs; }

  // Padding of a frame that never comes may be written already: it does not depend on the frame, so it is that of the first.
  bool differs(const Limb* word) const {
    const Limb* wanted = &expected[passed % total() * limbs];
    for (int limb = 0; limb < limbs; limb++) {
      int used = std::min(32, bits - 32 * limb);
      if (used <= 0) break;
      Limb mask = used == 32 ? ~Limb{0} : (Limb{1} << used) - 1;
      if ((wanted[limb] ^ word[limb]) & mask) return true;
    }
    return false;
  }

  void offer(bool is_valid) {
    pushes = is_valid && fifo.input_ready();
    if (passed < words_per_frame || passed >= total()) return;
    watched++;
    if (is_valid && !pushes) held++;
    if (!fifo.output_valid()) empty++;
  }

  void clock(int64_t cycle) {
    if (pushes) {
      if (differs(pushed.data()) && ++wrong == 1) {
        first_wrong = passed;
        first_wrong_cycle = cycle;
        found = pushed;
      }
      if (passed < total()) {
        if (passed % words_per_frame == 0) began.push_back(cycle);
        if ((passed + 1) % words_per_frame == 0) ended.push_back(cycle);
      }
      passed++;
    }
    fifo.clock(pushes, pushed.data(), pops);
    peak = std::max(peak, fifo.count());
  }
};

struct Node {
  std::unique_ptr<Layer> layer;
  std::string name;
  std::vector<int> inputs, outputs;
};

std::string listed(const std::vector<int64_t>& values) {
  std::string text;
  for (int64_t value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
  return "[" + text + "]";
}

std::vector<int64_t> integers(std::istream& file, size_t count) {
  std::vector<int64_t> values(count);
  for (auto& value : values) file >> value;
  if (!file) throw std::runtime_error("the parameters of a model end too early");
  return values;
}

std::vector<Elements> elements(std::istream& file) {
  size_t count;
  file >> count;
  std::vector<Elements> ports(count);
  for (auto& port : ports) {
    auto fields = integers(file, 3);
    port = {static_cast<int>(fields[0]), static_cast<int>(fields[1]), fields[2] != 0};
  }
  return ports;
}

std::unique_ptr<Layer> model(const std::string& path) {
  std::ifstream file(path);
  std::string kind, operation;
  file >> kind;
  auto in = elements(file), out = elements(file);
  size_t count;
  if (kind == "Duplicate") return std::make_unique<Duplicate>(in, out);
  if (kind == "Distribute") {
    file >> count;
    return std::make_unique<Distribute>(in, out, integers(file, count));
  }
  if (kind == "Enlarge") {
    auto map = integers(file, 6);
    return std::make_unique<Enlarge>(in, out, map[0], map[1], map[2], map[3], map[4], map[5] != 0);
  }
  if (kind == "Elementwise") {
    bool first;
    file >> operation >> first >> count;
    return std::make_unique<Elementwise>(in, out, operation, integers(file, count), first);
  }
  auto sizes = integers(file, 2);
  if (kind == "GlobalSum") return std::make_unique<GlobalSum>(in, out, sizes[0], sizes[1]);
  if (kind == "Pool") return std::make_unique<Pool>(in, out, sizes[0] != 0, sizes[1]);
  auto weights = integers(file, sizes[0] * sizes[1]);
  if (kind == "VectorUnit") return std::make_unique<VectorUnit>(in, out, sizes[0], sizes[1], weights);
  if (kind == "MatrixUnit") return std::make_unique<MatrixUnit>(in, out, sizes[0], sizes[1], weights);
  throw std::runtime_error("no model of the kind " + kind);
}

// A layer compiled from RTL. Its memories are read from files in `folder` when it is first evaluated, in reset().
std::unique_ptr<Layer> compiled(const std::string& name, const std::string& library, const std::string& folder) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) throw std::runtime_error(dlerror());
  auto make = reinterpret_cast<Layer* (*)(const char*)>(dlsym(handle, "make_layer"));
  if (!make) throw std::runtime_error(dlerror());
  if (chdir(folder.c_str())) throw std::runtime_error("no folder " + folder);
  std::unique_ptr<Layer> layer(make(name.c_str()));
  layer->reset(true);
  return layer;
}

std::vector<Limb> read_words(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<Limb> words(file.tellg() / sizeof(Limb));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(words.data()), words.size() * sizeof(Limb));
  return words;
}

struct Network {
  std::vector<Stream> streams;
  std::vector<Node> nodes;
  int64_t frames, pace, patience;
  std::vector<int> sources, sinks;
  std::vector<int64_t> finished;  // cycle in which each frame had left the last layer
  int64_t cycle = 0, first_input = -1;
  std::string stopped;
  const pid_t parent;

  Network(const std::string& path, pid_t parent) : parent(parent) {
    std::ifstream file(path);
    size_t count, ports;
    file >> frames >> pace >> patience;
    for (auto* side : {&sources, &sinks}) {
      file >> ports;
      for (auto stream : integers(file, ports)) side->push_back(static_cast<int>(stream));
    }
    file >> count;
    for (size_t index = 0; index < count; index++) {
      std::string name, words;
      int64_t per_frame, depth;
      int limbs, bits;
      file >> name >> per_frame >> limbs >> bits >> depth >> words;
      streams.emplace_back(name, per_frame, limbs, bits, depth);
      streams.back().expected = read_words(words);
      streams.back().expected.resize(frames * per_frame * limbs);
    }
    file >> count;
    for (size_t index = 0; index < count; index++) {
      Node node;
      std::string kind, library, folder;
      file >> node.name >> kind >> library;
      if (kind == "rtl") file >> folder;
      for (auto* side : {&node.inputs, &node.outputs}) {
        file >> ports;
        for (auto port : integers(file, ports)) side->push_back(static_cast<int>(port));
      }
      node.layer = kind == "rtl" ? compiled(node.name, library, folder) : model(library);
      nodes.push_back(std::move(node));
    }
    if (!file) throw std::runtime_error("the description ends too early");
  }

  void reset() {
    for (auto& node : nodes) {
      for (int tick = 0; tick < 16; tick++) {
        for (size_t port = 0; port < node.inputs.size(); port++)
          node.layer->set_input(port, false, streams[node.inputs[port]].pushed.data());
        for (size_t port = 0; port < node.outputs.size(); port++) node.layer->set_output_ready(port, false);
        node.layer->settle();
        node.layer->clock();
      }
      node.layer->reset(false);
    }
  }

  // Whether the next word of the input may come: `pace` cycles for a frame, its words evenly spread; 0: at once.
  bool may_send(const Stream& input) const {
    return input.passed < input.total() && input.passed * pace <= cycle * input.words_per_frame;
  }

  void step() {
    for (auto& node : nodes) {
      Layer& layer = *node.layer;
      for (size_t port = 0; port < node.inputs.size(); port++) {
        const Fifo& fifo = streams[node.inputs[port]].fifo;
        layer.set_input(port, fifo.output_valid(), fifo.output_word());
      }
      for (size_t port = 0; port < node.outputs.size(); port++)
        layer.set_output_ready(port, streams[node.outputs[port]].fifo.input_ready());
      layer.settle();
      for (size_t port = 0; port < node.inputs.size(); port++) {
        Stream& stream = streams[node.inputs[port]];
        stream.pops = stream.fifo.output_valid() && layer.input_ready(port);
      }
      for (size_t port = 0; port < node.outputs.size(); port++) {
        Stream& stream = streams[node.outputs[port]];
        bool is_valid = layer.output_valid(port);
        if (is_valid) layer.output_word(port, stream.pushed.data());
        stream.offer(is_valid);
      }
      layer.clock();
    }
    for (int source : sources) {
      Stream& input = streams[source];
      bool sends = may_send(input);
      if (sends) std::copy_n(&input.expected[input.passed * input.limbs], input.limbs, input.pushed.begin());
      input.offer(sends);
      if (input.pushes && first_input < 0) first_input = cycle;
    }
    for (int sink : sinks) streams[sink].pops = true;
  }

  bool has_left(int64_t frame) const {
    for (int sink : sinks)
      if (streams[sink].passed < (frame + 1) * streams[sink].words_per_frame) return false;
    return true;
  }

  void run() {
    reset();
    for (int64_t last_transfer = 0; static_cast<int64_t>(finished.size()) < frames; cycle++) {
      step();
      for (auto& stream : streams) {
        if (stream.pushes) last_transfer = cycle;
        stream.clock(cycle);
      }
      if (has_left(finished.size())) {
        finished.push_back(cycle);
        std::cout << "frame " << finished.size() << std::endl;
      }
      if (cycle - last_transfer > patience) {
        stopped = "deadlock";
        return;
      }
      if (cycle % 4096 == 0) {
        if (getppid() != parent) std::_Exit(3);  // whoever started this is gone
        for (auto& node : nodes)
          if (node.layer->stopped()) {
            stopped = node.name;
            return;
          }
      }
    }
  }

  void write(const std::string& path) const {
    std::ofstream file(path);
    file << "{\"cycles\": " << cycle << ", \"first_input\": " << first_input << ", \"stopped\": \"" << stopped
         << "\", \"finished\": " << listed(finished) << ", \"streams\": [";
    for (size_t index = 0; index < streams.size(); index++) {
      const Stream& stream = streams[index];
      file << (index ? ",\n" : "\n") << "{\"words\": " << stream.passed << ", \"peak\": " << stream.peak
           << ", \"left\": " << stream.fifo.count() << ", \"held\": " << stream.held << ", \"empty\": " << stream.empty
           << ", \"watched\": " << stream.watched << ", \"began\": " << listed(stream.began)
           << ", \"ended\": " << listed(stream.ended) << ", \"wrong\": " << stream.wrong << ", \"first_wrong\": " << stream.first_wrong
           << ", \"first_wrong_cycle\": " << stream.first_wrong_cycle << ", \"found\": [";
      for (size_t limb = 0; limb < stream.found.size(); limb++) file << (limb ? ", " : "") << stream.found[limb];
      file << "]}";
    }
    file << "\n]}\n";
  }
};

}  // namespace

int main(int count, char** arguments) {
  try {
    // the caller tells who it is: asked here, a caller that has just died would be taken for another
    if (count != 4) throw std::runtime_error("usage: simulator DESCRIPTION RESULT CALLER");
    Network network(arguments[1], static_cast<pid_t>(std::stol(arguments[3])));
    network.run();
    network.write(arguments[2]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 2;
  }
  std::_Exit(0);
}
