"""GLM-4-9B: the network of ChatGLM3, larger, with a byte-level BPE vocabulary."""
