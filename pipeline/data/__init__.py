"""Data sets on disk, their examples, parsed source code, and near-duplicates."""
