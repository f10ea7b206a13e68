"""Methods of source files: finding and writing them, where a body ends, and the benchmark's set."""
