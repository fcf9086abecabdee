"""Which candidate is judged next: the study that remembers, the samplers that propose, the rules that stop early."""
