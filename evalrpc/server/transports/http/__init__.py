"""HTTP/1.1: connections, what is let in, and the calls behind it. What it speaks is up to the packages beside this one."""
