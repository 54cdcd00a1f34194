"""What must hold: gate, submissions, papers' claims."""
