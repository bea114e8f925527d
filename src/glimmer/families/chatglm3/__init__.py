"""ChatGLM3-6B: the network of ChatGLM2 with role tokens and tool calls."""
