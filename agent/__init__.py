"""The node agent: a chunked read-through cache that serves datasets to pods."""
