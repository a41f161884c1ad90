"""What strict mode is for child processes."""

# as pyproject.toml has it: an entry that another worker is about to write is compiled anew
STRICT = ("-W", "error", "-W", "ignore:Error reading persistent compilation cache entry")
