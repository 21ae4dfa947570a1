"""`amsa profile`: where the time and the memory go."""
