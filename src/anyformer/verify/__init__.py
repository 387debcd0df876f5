"""The proof levels and the ledger."""
