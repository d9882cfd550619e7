"""How each tracer is installed, and what it has seen."""
