"""Read config files without executing code, and check a config before anything is built."""
