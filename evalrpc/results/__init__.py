"""What a harness leaves becomes typed metrics."""
