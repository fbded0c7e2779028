"""What a job left, read for a caller: logs, files, samples."""
