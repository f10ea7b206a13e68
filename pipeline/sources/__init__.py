"""Stage 1: the source files of code bases, and their licences."""
