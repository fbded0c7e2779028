"""Its place puts this folder on the path, so that any test can import `fake_server`."""
