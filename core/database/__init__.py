"""Everything about talking to PostgreSQL."""
