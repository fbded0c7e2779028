"""Files that runs and servers leave: safe opening, permissions, checksums and change detection."""
