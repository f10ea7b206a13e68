"""Stage 3: a LoRA adapter of the base model."""
