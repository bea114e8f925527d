"""The API server: OpenAI's, BigModel's and Anthropic's dialects on one port."""
