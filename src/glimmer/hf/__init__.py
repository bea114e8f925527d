"""The bridge to PyTorch and Transformers (extra "train"): any checkpoint as a transformers model."""
