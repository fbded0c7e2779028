"""What operators watch a server by. Loaded only where it is enabled: it takes libraries of extras."""
