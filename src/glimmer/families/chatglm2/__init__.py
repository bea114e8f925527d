"""ChatGLM2-6B: a causal network with RMSNorm, SwiGLU and grouped queries."""
