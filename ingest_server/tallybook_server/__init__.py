"""The server: it takes blocks in, keeps the ledger, and answers who used what, when."""
