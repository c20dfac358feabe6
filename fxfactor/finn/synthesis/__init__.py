"""What FINN's RTL takes of a chip, counted by an open synthesizer (Yosys), layer by layer."""
