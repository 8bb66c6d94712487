"""How the smallest files and the shipped networks are made."""
