"""Campaigns: many compressions of transformer models, tracked, compared and promoted."""
