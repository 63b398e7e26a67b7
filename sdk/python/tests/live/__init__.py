"""Tests against a running host, named by PODFLARE_TEST_HOST.

The host may be emulated, and slow: nothing here asserts times.
"""
