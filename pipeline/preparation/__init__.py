"""Stage 2: cleaning, cutting, splitting, and the data set on disk and on the hub."""
