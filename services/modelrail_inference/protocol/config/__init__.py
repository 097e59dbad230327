"""A model's configuration in Triton's format, `config.pbtxt`: read, and written for ModelConfig."""
