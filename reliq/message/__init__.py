"""What travels with a message: its record, the verdict on it, the failure behind it, the letter at its end."""
