"""What Connect has no form for, at plain paths: events as a browser and curl read them, and files as they are."""
