"""What people do with the tables, one module per noun."""
