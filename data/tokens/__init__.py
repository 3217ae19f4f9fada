"""Conversations become token ids, kept in a store on disk."""
