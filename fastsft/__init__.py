"""fastsft: fine-tunes Qwen2.5, Llama and Mistral on one consumer GPU, and proves every step."""

__version__ = "0.1.0"
