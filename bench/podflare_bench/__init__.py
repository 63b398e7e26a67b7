"""Measures a running host: what docs/promises.md promises, each beside its floor. See bench/README.md."""
