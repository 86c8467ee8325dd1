"""All processes of Headrace on one machine, for the demonstration, integration tests and benchmarks."""
