"""The real engine on a logical clock, for hardware that is not here."""
