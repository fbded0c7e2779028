"""The executor that hands runs over to a Slurm cluster which shares the server's disk."""
