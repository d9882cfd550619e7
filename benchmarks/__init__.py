"""How fast, beside what people use today, in one run: ``nox -s benchmarks``."""
