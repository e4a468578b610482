"""Results for people: one HTML file that opens offline, in a folder that is written whole or not at all."""
