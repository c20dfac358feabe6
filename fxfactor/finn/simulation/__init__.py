"""Simulation of the hardware that FINN generates, without Vivado: Verilator compiles the RTL, a program of ours connects it."""
