"""What norms cost: in compiled programs, and in time."""
