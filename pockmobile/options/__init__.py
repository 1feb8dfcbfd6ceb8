"""The options that `export` and `analyze` share, and what these make."""
