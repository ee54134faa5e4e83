"""Middleware that records each request: raw ASGI and WSGI. Import it as `tallybook.middleware`."""
