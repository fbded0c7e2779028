"""The Connect protocol: every call as a POST, what only reads as a GET, too. https://connectrpc.com/docs/protocol"""
