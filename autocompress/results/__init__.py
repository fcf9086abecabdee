"""What a search leaves as data: records, fronts, the run's folder. Loads without torch."""
