"""ChatGLM-6B: the first generation, a blank-infilling network (GLM) with 2-D positions."""
