"""HTTP surfaces of programs."""
