"""Stand-ins for the daemon, the API server and the recorder, for the demo, the benchmarks and the tests."""
