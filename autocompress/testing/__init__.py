"""What tests and experiments of a search need: whole searches replayed from recorded evaluations."""
