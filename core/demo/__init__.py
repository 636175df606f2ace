"""The main job on made or given data."""
