"""``python -m bench scale``: a hundred workers, a hundred thousand jobs, and what grows with history."""
