"""Tests of the SDK: against a mock transport here, against a running host in `live`."""
