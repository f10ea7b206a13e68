"""Stage 4: the adapter merged into the base model."""
