"""What rooms promise each other: protocols and the plain data that pass between them, below everyone but `state`."""
