"""Served models: engines that answer OpenAI's API, and the gateway between them and the harnesses."""
