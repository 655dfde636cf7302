"""oneDNN, the CPU's library of neural network primitives, driven through its C API."""
