"""Reading what a job left: logs, files, samples."""
