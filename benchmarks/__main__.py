"""`python -m benchmarks`."""

if __name__ == "__main__":  # the load processes import this module too, and need nothing of it
    from benchmarks.command_line import main

    main()
