"""Helpers of the tests: fakes, servers, waiting, request bodies."""
