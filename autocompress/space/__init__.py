"""What is searched: candidates, knobs and their choices, ranks."""
