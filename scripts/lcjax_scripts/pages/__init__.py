"""What writes pages and pictures of docs/ from raw files."""
