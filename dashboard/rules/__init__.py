"""What the pages say of what was read: plain functions, no page, no database."""
