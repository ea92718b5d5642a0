"""How a campaign's own cost grows with its trials: recorded trainings, everything else real."""
